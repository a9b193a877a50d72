"""What plug-ins build with: the training loop, short memory, probes, labels, likeness."""

from bench.training.activations import Choice as Choice
from bench.training.activations import activation_profile as activation_profile
from bench.training.activations import choose_block as choose_block
from bench.training.labels import answers as answers
from bench.training.labels import classifier as classifier
from bench.training.labels import matches as matches
from bench.training.loop import Parameters as Parameters
from bench.training.loop import Precision as Precision
from bench.training.loop import Schedule as Schedule
from bench.training.loop import Training as Training
from bench.training.loop import TrainingSettings as TrainingSettings
from bench.training.loop import by_depth as by_depth
from bench.training.loop import fit as fit
from bench.training.loop import passes as passes
from bench.training.loop import schedule as schedule
from bench.training.microbatch import MicroBatches as MicroBatches
from bench.training.microbatch import in_batches as in_batches
from bench.training.probe import head_accuracy as head_accuracy
from bench.training.probe import probe_accuracy as probe_accuracy
from bench.training.similarity import Estimator as Estimator
from bench.training.similarity import cka as cka
