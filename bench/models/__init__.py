"""Vision models of any library in one vocabulary; every pass is counted."""

from bench.models.backbones import OpenClipViT as OpenClipViT
from bench.models.backbones import OtherTrunk as OtherTrunk
from bench.models.backbones import TimmViT as TimmViT
from bench.models.heads import ClassifierHead as ClassifierHead
from bench.models.heads import Head as Head
from bench.models.heads import SegmentationHead as SegmentationHead
from bench.models.libraries import build as build
from bench.models.libraries import randomised as randomised
from bench.models.meter import aside as aside
from bench.models.meter import measuring as measuring
from bench.models.meter import timed as timed
from bench.models.surgery import dimensions as dimensions
from bench.models.surgery import narrow as narrow
from bench.models.surgery import segmentation_head as segmentation_head
from bench.models.surgery import with_head as with_head
from bench.models.suspect import View as View
from bench.models.vision import Architecture as Architecture
from bench.models.vision import Dimensions as Dimensions
from bench.models.vision import Part as Part
from bench.models.vision import VisionModel as VisionModel
from bench.models.vision import clone as clone
