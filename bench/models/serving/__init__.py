"""Stand between a model and those who ask it: its weights stay, questions and answers do not.

A `VisionModel` whose architecture is `served` computes as its weights do. Who asks it by way of a
`Service` is answered as a server's clients are: verifiers who only ask, and those who measure how
useful it is. Who sees the weights sees through it.
"""

from bench.models.serving.maps import DETECTORS as DETECTORS
from bench.models.serving.maps import INPUTS as INPUTS
from bench.models.serving.maps import KINDS as KINDS
from bench.models.serving.maps import changed as changed
from bench.models.serving.maps import impossible as impossible
from bench.models.serving.maps import told as told
from bench.models.serving.service import Service as Service
from bench.models.serving.service import answers as answers
from bench.models.serving.service import bound_for as bound_for
from bench.models.serving.service import suspicion as suspicion
