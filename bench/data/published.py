"""Know the data sets that others publish: how much there is of each, and how to come by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set as its authors give it out; of `images` the last `tested` are its own test part.

    `where` is the page it is got from and `how` the commands, run where relative paths start.
    `trimaps` names the classes of its trimaps, if it has them.
    """

    name: str
    title: str
    images: int
    tested: int
    classes: int
    gigabytes: float
    where: str
    how: str
    trimaps: tuple[str, ...] = ()

    def classes_of(self, targets: Literal["classes", "trimaps"]) -> tuple[str, ...]:
        """Name the classes that are asked for; by numbers where their names are not known here."""
        return self.trimaps if targets == "trimaps" else tuple(map(str, range(self.classes)))


_KNOWN = (
    DataSet(
        "ilsvrc2012-val",
        "ImageNet, the validation images of ILSVRC 2012 in class folders",
        images=50_000,
        tested=0,
        classes=1000,
        gigabytes=6.7,
        where="https://image-net.org/download-images (with an account)",
        how="mkdir imagenet-val && tar -xf ILSVRC2012_img_val.tar -C imagenet-val, and in there "
        "soumith's valprep.sh, which moves the files into folders n01440764 ... n15075141: in "
        "sorted order they are the classes 0 .. 999 of torchvision and timm",
    ),
    DataSet(
        "oxford-iiit-pet",
        "Oxford-IIIT Pet: images/, annotations/",
        images=7349,
        tested=3669,
        classes=37,
        gigabytes=0.8,
        where="https://www.robots.ox.ac.uk/~vgg/data/pets/",
        how="`bench check SUITE --download`, which asks torchvision",
        trimaps=("background", "pet"),
    ),
    DataSet(
        "foodseg103",
        "FoodSeg103: Images/, category_id.txt",
        images=7118,
        tested=2135,
        classes=104,
        gigabytes=1.2,
        where="https://xiongweiwu.github.io/foodseg103.html",
        how="curl -LO https://research.larc.smu.edu.sg/downloads/datarepo/FoodSeg103.zip, then "
        "unzip it with the password in the README of LARC-CMU-SMU/FoodSeg103-Benchmark-v1",
    ),
    DataSet(
        "e-commerce-products",
        "E-commerce Product Images: train/, val/ and others, with class folders",
        images=18_175,
        tested=0,
        classes=9,
        gigabytes=0.5,
        where="https://www.kaggle.com/datasets/fatihkgg/ecommerce-product-images-18k",
        how="kaggle datasets download --unzip fatihkgg/ecommerce-product-images-18k (an account)",
    ),
)

DATA_SETS = {known.name: known for known in _KNOWN}
"""By the name that `dataset:` takes. Sizes are their authors'; gigabytes and the sizes of parts are
from memory."""
