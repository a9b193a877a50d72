"""Bits in the centres that activations of secret images gather around.

B. Darvish Rouhani, H. Chen, F. Koushanfar, "DeepSigns: an end-to-end watermarking framework for
ownership protection of deep neural networks", ASPLOS 2019, https://arxiv.org/abs/1804.00750; the
white-box mark of section 4.1. Bits, weights and rates from the authors' code and from N. Lukas et
al., "SoK: how robust is image classification deep neural network watermarking?",
https://arxiv.org/abs/2108.04974.

Activations f at a layer are taken for a mixture of Gaussians, one for each class, with centres mu.
Training pulls f to the centre of its class, and gives mu A the signs of the bits for a secret A.
Verification averages f over secret images of each class, and reads the bits off the mean.

An encoder has no classes. Here a class is a cluster: the owner's clean embeddings of the secret
images are parted by k-means, and the parts are kept in the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from bench.data import sent
from bench.models import VisionModel, clone
from bench.registry import method
from bench.training import Schedule, in_batches
from bench.types import (
    Access,
    Context,
    Evidence,
    Facts,
    Incompatible,
    Json,
    NotNegative,
    Paper,
    PartialShare,
    Passes,
    Positive,
    Protected,
    Sizes,
    Suspect,
    UserError,
)
from methods.commitment import BITS, NONCE, nonce, normal, owner_digest
from methods.whitebox import bits, embedding, tensors
from methods.whitebox.embedding import CleanTokens, Seen

READ_BATCH = 128


class Clean(NamedTuple):
    """What the clean owner makes of all its images."""

    tokens: CleanTokens
    features: Tensor  # (m, d) mean patches before the block
    embeddings: Tensor  # (m, d')


@method("deepsigns", version=2)
@dataclass(frozen=True)
class DeepSigns:
    """Write bits into the mean activations of clusters of secret images.

    The null is exact: A follows from the key's seed and the bits from a hash of all else, images
    and clusters with it. About any model made without the key each bit is a fair coin: strangers,
    the clean owner and its copies, models marked with another key. It covers keys made afterwards,
    up to trying: p costs 1 / p keys.

    * `images`, `clusters`, `bits`: how many secret images, fewer where the owner has not as many;
      how many classes they are parted into; how many bits each of these has. The code has 16 bits
      of each of ten classes, Lukas et al. 100 bits in all. 64 images are few: the paper takes 1 %
      of those trained on.
    * `block`: 0-based number of the block whose input is read; "auto" is the one in the middle.
      The paper takes the layer before the last.
    * `centred`: whether the mean over clusters is taken out before the bits are read. The paper
      does not. In a residual stream all images share a large mean, and the bits of all clusters
      would be read off that: as below, with `weight` at 0.1, 74 % of them were learnt instead of
      92 %. A shift of the stream then changes nothing. Bits that are alike in all clusters cannot
      all be written: a share 2^(1 - clusters) of the columns of A, so four clusters are too few.
    * `pull`, `weight`: of the distance to the centre, as a mean over channels in units of the
      owner's deviation, and of the sum over bits. The code has 0.01 for both, with other units of
      the distance. In 400 steps of 4 images at a rate of 1e-3, one key on `mini`: 83 % of the bits
      with 0.1, 91 % with 1; at 3e-3 98 %.
    * `steps`, `batch`, `lr`, `centre_lr`, `schedule`, `warmup`, `weight_decay`: AdamW's; the
      centres have a rate of their own, 0.01 in Lukas et al. What a ViT-L needs was not tried;
      `bench tune` finds it.
    * `holder`: who claims the model, as the commitment says it.
    """

    needs: ClassVar[Access] = Access.WEIGHTS
    marks: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts(
        unit="bit",
        paper=Paper(2019, "Darvish Rouhani, Chen, Koushanfar, ASPLOS", "arXiv:1804.00750"),
        departures=(
            "Clusters of the owner's embeddings stand for classes.",
            "Centres are read after their mean is taken off, unless `centred` says otherwise.",
        ),
    )
    tunable: ClassVar[Mapping[str, tuple[Json, ...]]] = {
        "lr": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
        "weight": (1e-3, 1e-2, 1e-1, 1.0),
        "pull": (1e-3, 1e-2, 1e-1, 1.0),
    }

    images: Positive = 64
    clusters: Positive = 8
    bits: Positive = 16
    block: Positive | Literal["auto"] = "auto"
    centred: bool = True
    pull: NotNegative = 1.0
    weight: NotNegative = 0.01
    steps: Positive = 400
    batch: Positive = 16
    lr: NotNegative = 3e-3
    centre_lr: NotNegative = 1e-2
    schedule: Schedule = "cosine"
    warmup: PartialShare = 0.1
    weight_decay: NotNegative = 0.0
    holder: str = ""

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Mark a copy of `owner`; the notes hold the losses and the share of bits it carries."""
        base = clone(owner).to(ctx.device).requires_grad_(False)
        block = self._block(base)
        clean = _clean(base, block, ctx)
        chosen = torch.randperm(len(ctx.images), generator=ctx.rng)[: self.images]
        if len(chosen) < self.clusters:
            raise UserError(
                f"deepsigns: expected an image for each of clusters = {self.clusters}, got "
                f"{len(chosen)}; give the owner more images, or lower `clusters`"
            )
        parted = _clusters(clean.embeddings, chosen, self.clusters, ctx.rng)  # (m,)
        secret = bits.with_bits(
            {
                "pixels": ctx.images.pixels[chosen],
                "clusters": parted[chosen],
                "place": torch.tensor([block, base.width]),
                "owner": owner_digest(owner),
                bits.SEED: nonce(ctx.rng),
                NONCE: nonce(ctx.rng),
            },
            self.clusters * self.bits,
            self._rule,
        )
        marked, notes = self._trained(base, secret, clean, parted, ctx)
        before = self._read(secret, clean.features[chosen]).rate
        after = self._read(secret, _features(marked, block, secret["pixels"], ctx)).rate
        notes |= {"block": block, "bits_before": before, "bits_carried": after}
        return Protected(marked.cpu(), secret, notes)

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Read the bits of every cluster off the suspect's activations; one query is one bit.

        Raises:
            UserError: the bits are not those that the secret commits to.
            Incompatible: the suspect has no such block, or is of another width.

        """
        bits.check(secret, self._rule, "deepsigns")
        network = suspect.network.to(ctx.device)
        block, width = secret["place"].tolist()
        _refuse(network, block, width)
        return self._read(secret, _features(network, block, secret["pixels"], ctx))

    def redrawn(self, secret: Mapping[str, Tensor], rng: torch.Generator) -> Mapping[str, Tensor]:
        """Return the secret with another nonce, which gives other bits and the same A."""
        fresh = {**secret, NONCE: nonce(rng)}
        return bits.with_bits(fresh, self.clusters * self.bits, self._rule)

    def unreadable(self, owner: VisionModel, suspect: VisionModel) -> str:
        """Say that the suspect has no such block, or is of another width."""
        try:
            _refuse(suspect, self._block(owner), owner.width)
        except Incompatible as error:
            return str(error)
        return ""

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count the clean passes, the steps there and back, and the reading at the end."""
        made = embedding.embedding_passes(embedding.embedding_of(self), sizes)
        return Passes(made.forward + self.extract_passes(sizes).forward, made.backward)

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count the secret images, as far as the block."""
        block = sizes.blocks // 2 if self.block == "auto" else self.block
        return Passes(min(self.images, sizes.images) * block / sizes.blocks)

    @property
    def _rule(self) -> Json:
        """What decides how bits are read, and who claims them: the commitment binds it."""
        return {
            "name": "deepsigns",
            "version": 2,
            "clusters": self.clusters,
            "bits": self.bits,
            "centred": self.centred,
            "holder": self.holder,
        }

    def _block(self, model: VisionModel) -> int:
        block = tensors.middle(model) if self.block == "auto" else self.block
        tensors.refuse_block(model, block)
        return block

    def _projection(self, secret: Mapping[str, Tensor]) -> Tensor:
        """Return A (d, bits), from N(0, 1)."""
        width = int(secret["place"][1])
        return normal(bits.projecting(secret, self._rule), width, self.bits)

    def _values(self, centres: Tensor, projection: Tensor) -> Tensor:
        """Project centres (k, d) to what bits are read off, (k bits,)."""
        seen = centres - centres.mean(0) if self.centred else centres
        return (seen @ projection).flatten()

    def _read(self, secret: Mapping[str, Tensor], features: Tensor) -> Evidence:
        """Read the bits off features (n, d) of the secret images."""
        centres = _centres(features.double(), secret["clusters"], self.clusters)
        values = self._values(centres, self._projection(secret))
        return bits.compare(values, secret[BITS])

    def _trained(
        self,
        base: VisionModel,
        secret: Mapping[str, Tensor],
        clean: Clean,
        parted: Tensor,
        ctx: Context,
    ) -> tuple[VisionModel, dict[str, Json]]:
        """Train centres and a copy of the owner, on all its images.

        The paper also pushes marked centres away from others, without a bound. Left out: every
        cluster is marked here, and what keeps them apart is the task.
        """
        block, _ = secret["place"].tolist()
        unit = float(clean.features.std(0).square().mean().sqrt().clamp_min(1e-12))
        start = _centres(clean.features, parted, self.clusters) / unit
        centres = nn.Parameter(start.to(ctx.device))
        projection = self._projection(secret).float().to(ctx.device)
        sought = secret[BITS].to(ctx.device)

        def look(model: VisionModel, images: Tensor, chosen: Tensor) -> Seen:
            stream = model.run_blocks(model.embed(images), 0, block)
            found = _mean_patch(model, stream) / unit  # (b, d)
            off = found - centres[sent(parted[chosen], ctx.device)]
            asked = embedding.bit_loss(self._values(centres, projection), sought)
            return Seen(
                model.finish(model.run_blocks(stream, block)),
                self.pull * off.square().mean() + self.weight * asked,
            )

        how = embedding.embedding_of(self)
        beside = [{"params": [centres], "lr": self.centre_lr}]
        return embedding.embed(how, base, look, clean.tokens, ctx, beside)


def _clean(base: VisionModel, block: int, ctx: Context) -> Clean:
    """Send all the owner's images through it, once."""

    def ask(images: Tensor) -> list[Tensor]:
        stream = base.run_blocks(base.embed(images), 0, block)
        tokens = base.finish(base.run_blocks(stream, block))
        return [tokens, _mean_patch(base, stream), base.embedding(tokens)]

    tokens, (features, embeddings) = embedding.look_once(base, ask, ctx)
    return Clean(tokens, features, embeddings)


def _features(model: VisionModel, block: int, pixels: Tensor, ctx: Context) -> Tensor:
    """Return the mean patch before a block, (n, d) on the CPU, of images uint8 (n, 3, h, w)."""
    model = model.to(ctx.device)

    def some(part: slice) -> Tensor:
        stream = model.embed(sent(pixels[part], ctx.device).float() / 255)
        return _mean_patch(model, model.run_blocks(stream, 0, block)).cpu()

    with torch.no_grad():
        return torch.cat([*in_batches(len(pixels), READ_BATCH, some)])


def _mean_patch(model: VisionModel, stream: Tensor) -> Tensor:
    """Average the stream (b, n, d) over its patches, (b, d)."""
    return stream[:, model.prefix :].mean(1)


def _clusters(embeddings: Tensor, chosen: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Part all images (m,) by k-means, fitted on the embeddings (m, d) of the chosen ones."""
    from sklearn.cluster import KMeans

    seed = int(torch.randint(2**31, (), generator=rng))
    fitted = KMeans(count, n_init=4, random_state=seed).fit(embeddings[chosen].double().numpy())
    return torch.from_numpy(fitted.predict(embeddings.double().numpy())).long()


def _centres(features: Tensor, clusters: Tensor, count: int) -> Tensor:
    """Return the mean of features (n, d) over each cluster, (k, d)."""
    member = torch.nn.functional.one_hot(clusters.cpu(), count).to(features)  # (n, k)
    return (member.T @ features) / member.sum(0)[:, None]


def _refuse(model: VisionModel, block: int, width: int) -> None:
    tensors.refuse_block(model, block)
    if model.width != width:
        raise Incompatible(f"expected the owner's width {width}, got {model.width}")
