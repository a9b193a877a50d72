import torch

# Many small tensors: threads that wait for each other on a busy machine cost a factor of ten.
torch.set_num_threads(1)
