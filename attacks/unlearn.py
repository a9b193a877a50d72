"""Have a stolen model unlearn what its owner may know of its hidden states, and answer as before.

These thieves hold the weights. They change what lies between image and features, and match the
victim's features on images of their own: no label is needed but for `removalnet`, which takes the
victim's own. As elsewhere in the bench the optimiser is AdamW.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.matching import answers, final_tokens, token_distance
from bench import training
from bench.data import sent
from bench.models import VisionModel, clone, randomised
from bench.registry import attack
from bench.types import (
    Access,
    Change,
    Context,
    Count,
    Incompatible,
    NotNegative,
    PartialShare,
    Passes,
    Positive,
    PositiveFloat,
    Sizes,
    UserError,
)

LN2 = math.log(2)
"""The cross-entropy of a bit that is guessed."""


@attack("finetune.rear")
@dataclass(frozen=True, slots=True)
class Rear:
    """Draw the last blocks anew, and teach them the victim's final tokens.

    A mark that is written to one block and read further on needs the blocks between. The thief
    knows such methods and not the block, so `blocks` is his guess, and the axis of a sweep. What
    lies before the last blocks is left as it is.

    The attack is this bench's own: it answers what reviewers asked of A. Chistyakova, M. Pautov,
    "ActiveMark: on watermarking of visual foundation models via massive activations",
    arXiv:2510.04966.

    * `data`: the data set whose images the thief learns on; none: the probe's.
    * `blocks`: how many, counted from the last.
    * `epochs`, `batch`: passes over the thief's images, and images in a step.
    * `lr`, `schedule`, `warmup`: the peak learning rate, how it goes on, and the share of the steps
      in which it rises. The default suits blocks that start afresh at a width of 48. 1e-4, the
      middle of the range in which vision transformers are tuned, is for a ViT-L. At a rate of 0
      nothing is learnt, and so nothing is drawn.
    * `weight_decay`: AdamW's.
    * `precision`: of the passes.
    """

    data: str | None = None
    blocks: Positive = 2
    epochs: Positive = 10
    lr: NotNegative = 1e-3
    batch: Positive = 32
    schedule: training.Schedule = "cosine"
    warmup: PartialShare = 0.1
    weight_decay: NotNegative = 0.01
    precision: training.Precision = "float32"

    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = True
    change: ClassVar[Change] = "finetuning"
    adaptive: ClassVar[str] = "that a block is written to"

    def passes(self, sizes: Sizes) -> Passes:
        """Count the victim's answers, and every epoch there and, through the new blocks, back."""
        seen = self.epochs * sizes.images
        return Passes(sizes.images + seen, seen * self.blocks / sizes.blocks)

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the copy, heads and all; notes say the last epoch's loss.

        Raises:
            UserError: the victim has fewer blocks.

        """
        depth = len(victim.blocks)
        if self.blocks > depth:
            raise UserError(
                f"finetune.rear: blocks: expected the victim's {depth} or fewer, got {self.blocks}"
            )
        front, made = depth - self.blocks, clone(victim)
        seed = int(torch.randint(2**62, (), generator=ctx.rng))
        if self.lr:  # or the copy would be worth nothing
            drawn = randomised(victim.architecture, seed).blocks
            for new, old in zip(drawn[front:], made.blocks[front:], strict=True):
                old.load_state_dict(new.state_dict())
        made = made.to(ctx.device)
        wanted = answers(victim, ctx.images, final_tokens, ctx.device)  # (n, t, d)

        def loss_of(chosen: Tensor) -> Tensor:
            with torch.no_grad():
                images = ctx.images.batch(chosen, ctx.device)
                tokens = made.run_blocks(made.embed(images), 0, front)
            found = made.finish(made.run_blocks(tokens, front))  # (b, t, d)
            return token_distance(found, sent(wanted[chosen], ctx.device), made.prefix)

        learnt = [p for block in made.blocks[front:] for p in block.parameters()]
        fit = training.fit(learnt, loss_of, len(ctx.images), self, ctx.rng)
        made.notes = {"final_loss": fit.losses[-1], "steps": fit.steps}
        return made.eval()


class Codec(nn.Module):
    """A thief's own encoder and decoder of messages: two fully connected layers each."""

    def __init__(self, width: int, read: int, bits: int, hidden: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(width + bits, hidden), nn.ReLU(), nn.Linear(hidden, width)
        )
        self.decoder = nn.Sequential(nn.Linear(read, hidden), nn.ReLU(), nn.Linear(hidden, bits))

    def draw(self, rng: torch.Generator) -> Codec:
        """Draw every layer uniformly in 1 / sqrt(fan-in), as PyTorch does, from `rng`."""
        with torch.no_grad():
            for layer in (m for m in self.modules() if isinstance(m, nn.Linear)):
                bound = layer.in_features**-0.5
                for value in (layer.weight, layer.bias):
                    value.copy_(torch.empty(value.shape).uniform_(-bound, bound, generator=rng))
        return self


@attack("finetune.surrogate_codec")
@dataclass(frozen=True, slots=True)
class SurrogateCodec:
    """Learn to read messages off the victim as its owner might, then teach it to hide them.

    The thief writes random bits into one token after one block, by an encoder of his own, and a
    decoder reads them further on. First these two learn, on the frozen victim. Then the
    model learns to keep its features and to leave the decoder guessing. Rounds of both alternate,
    so that the decoder keeps up.

    The attack is this bench's own, against A. Chistyakova, M. Pautov, "ActiveMark: on watermarking
    of visual foundation models via massive activations", arXiv:2510.04966.

    * `data`: the data set whose images the thief learns on; none: the probe's.
    * `block`: after which the token is written to, from 0; none: the middle one.
    * `token`: which, where CLS is 0. A thief who knows the owner's place gives that of both.
    * `read`: what the decoder sees: [CLS; mean patch] ("pooled"), or the written token among the
      final ones ("token"). A patch that is written to late hardly reaches the former.
    * `bits`, `hidden`: the length of a message, and the width of his encoder and decoder.
    * `weight`: of the decoder's ignorance, to the distance of features: 0.1, 1 and 10 are a sweep.
    * `rounds`: how often model and decoder take turns.
    * `epochs`, `batch`: passes of the model over the thief's images in a round, and images in a
      step.
    * `codec_epochs`, `refresh_epochs`: those of encoder and decoder before the first round, and
      before each of the others.
    * `lr`, `codec_lr`: the learning rates, constant: of the model, and of encoder and decoder. 1e-5
      to 1e-4 suit a ViT-L, as in the code of the mark's authors.
    * `weight_decay`: AdamW's, of the model.
    * `precision`: of the passes.
    """

    data: str | None = None
    block: Count | None = None
    token: Count = 0
    read: Literal["pooled", "token"] = "pooled"
    bits: Positive = 32
    hidden: Positive = 64
    weight: NotNegative = 1.0
    rounds: Positive = 5
    epochs: Positive = 2
    codec_epochs: Positive = 10
    refresh_epochs: Positive = 2
    lr: NotNegative = 1e-4
    codec_lr: NotNegative = 1e-3
    batch: Positive = 32
    weight_decay: NotNegative = 0.01
    precision: training.Precision = "float32"

    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = True
    change: ClassVar[Change] = "finetuning"
    adaptive: ClassVar[str] = "that a token carries a message"

    def passes(self, sizes: Sizes) -> Passes:
        """Count the victim's answers, the codec's epochs, and the model's, clean and written to.

        The codec's way back ends at the written token, and looks at no weight.
        """
        behind = (sizes.blocks - 1 - self._written(sizes.blocks)) / sizes.blocks
        codec = (self.codec_epochs + (self.rounds - 1) * self.refresh_epochs) * sizes.images
        model = self.rounds * self.epochs * sizes.images
        return Passes(
            sizes.images + codec + model * (1 + behind), codec * behind + model * (1 + behind)
        )

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the copy, heads and all; notes say the last losses of the model and its reader.

        `codec_loss` is the cross-entropy of a bit on the victim itself, once the codec has learnt,
        and `last_codec_loss` that before the last round; 0.69 is a guess.

        Raises:
            UserError: the victim has no such block or token.

        """
        model = clone(victim).to(ctx.device)
        codec = self._codec(model, ctx)
        wanted = answers(victim, ctx.images, final_tokens, ctx.device)  # (n, t, d)
        written = self._written(len(model.blocks))

        def before(chosen: Tensor) -> Tensor:
            images = ctx.images.batch(chosen, ctx.device)
            return model.run_blocks(model.embed(images), 0, written + 1)

        def read_loss(chosen: Tensor) -> Tensor:
            with torch.no_grad():
                tokens = before(chosen)
            return self._confusion(model, codec, tokens, ctx)

        def hide_loss(chosen: Tensor) -> Tensor:
            tokens = before(chosen)
            found = model.finish(model.run_blocks(tokens, written + 1))
            kept = F.mse_loss(found, sent(wanted[chosen], ctx.device))
            # Departure: capped at a guess. A decoder that is always wrong tells as much as one
            # that is always right.
            return kept - self.weight * self._confusion(model, codec, tokens, ctx).clamp(max=LN2)

        reads, hides = list[float](), list[float]()
        for number in range(self.rounds):
            epochs = self.refresh_epochs if number else self.codec_epochs
            how = training.Training(epochs, self.batch, self.codec_lr, precision=self.precision)
            _only(codec, model)
            fit = training.fit(codec.parameters(), read_loss, len(ctx.images), how, ctx.rng)
            reads.append(fit.losses[-1])
            how = dataclasses.replace(
                how, epochs=self.epochs, lr=self.lr, weight_decay=self.weight_decay
            )
            _only(model, codec)
            fit = training.fit(model.parameters(), hide_loss, len(ctx.images), how, ctx.rng)
            hides.append(fit.losses[-1])
        model.notes = {
            **{"final_loss": hides[-1], "steps": self.rounds * fit.steps},
            **{"codec_loss": reads[0], "last_codec_loss": reads[-1]},
        }
        return model.eval().requires_grad_(True)

    def _confusion(self, model: VisionModel, codec: Codec, tokens: Tensor, ctx: Context) -> Tensor:
        """Return the cross-entropy of random bits that are written into tokens (b, t, d)."""
        drawn = torch.randint(2, (len(tokens), self.bits), generator=ctx.rng)
        message = sent(drawn, ctx.device).to(tokens.dtype)  # (b, bits)
        carried = codec.encoder(torch.cat([tokens[:, self.token], message], 1))  # (b, d)
        place = torch.tensor([self.token], device=ctx.device)
        tokens = tokens.index_copy(1, place, carried[:, None].to(tokens.dtype))
        final = model.finish(model.run_blocks(tokens, self._written(len(model.blocks)) + 1))
        seen = model.pooled(final) if self.read == "pooled" else final[:, self.token]
        logits = codec.decoder(seen)  # (b, bits)
        return F.binary_cross_entropy_with_logits(logits.float(), message.float())

    def _written(self, blocks: int) -> int:
        return (blocks - 1) // 2 if self.block is None else self.block

    def _codec(self, model: VisionModel, ctx: Context) -> Codec:
        blocks = len(model.blocks)
        if self._written(blocks) >= blocks:
            raise UserError(
                f"finetune.surrogate_codec: block: expected 0 to {blocks - 1}, got {self.block}"
            )
        rows, columns = model.trunk.grid
        tokens = model.prefix + rows * columns
        if self.token >= tokens:
            raise UserError(
                f"finetune.surrogate_codec: token: expected 0 to {tokens - 1}, got {self.token}"
            )
        with torch.device("meta"):  # first weights would be drawn on the global generator
            read = model.num_features * (2 if self.read == "pooled" else 1)
            codec = Codec(model.width, read, self.bits, self.hidden)
        return codec.to_empty(device="cpu").draw(ctx.rng).to(ctx.device)


@attack("removalnet")
@dataclass(frozen=True, slots=True)
class RemovalNet:
    """Move hidden states away from the victim's while the class stays, and learn to have those.

    In every step a state of the victim is moved: some channels change places, noise is added, and
    signed steps go away from where it was while the rest of the victim keeps its class. The copy
    learns to have that state, class scores mixed with those of another image, and the class.

    Source: H. Yao, Z. Li, K. Huang, J. Lou, Z. Qin, K. Ren, "RemovalNet: DNN fingerprint removal
    attacks", IEEE TDSC 2023, arXiv:2308.12319. Its models are convolutional: here the state is the
    residual stream after a block. It trains 1000 to 2000 steps of about 100 images with SGD at 8e-3
    to 1e-2.

    * `data`: the data set whose images the thief learns on; none: the probe's.
    * `block`: after which the state is moved, from 0; none: the middle one.
    * `shuffled`: the share of channels that change places; the paper's go from 0.02 to 0.2.
    * `noise`: what is added is tan(U), U uniform in (-1, 1), times so many deviations of the state.
    * `inner_steps`, `inner_lr`: signed steps of a state, and their length in its deviations. The
      paper takes 20 to 30 of 0.01, of features whose deviation is about 1.
    * `apart`: the weight of the logarithm of the distance gone.
    * `temperature`: of class scores.
    * `scores_weight`, `state_weight`, `label_weight`: of the divergence of scores, the distance of
      states and the cross-entropy. The paper's are 0.2 to 0.4, 2 to 4 and 0.6 to 0.8.
    * `epochs`, `batch`: passes over the thief's images, and images in a step.
    * `lr`, `schedule`, `warmup`: the peak learning rate, how it goes on, and the share of the steps
      in which it rises. 1e-4 is for a ViT-L, the middle of the range that such models are tuned in.
    * `weight_decay`: AdamW's.
    * `precision`: of the passes.
    """

    data: str | None = None
    block: Count | None = None
    shuffled: PartialShare = 0.1
    noise: NotNegative = 0.1
    inner_steps: Count = 20
    inner_lr: NotNegative = 0.01
    apart: NotNegative = 0.1
    temperature: PositiveFloat = 20.0
    scores_weight: NotNegative = 0.3
    state_weight: NotNegative = 3.0
    label_weight: NotNegative = 0.7
    epochs: Positive = 10
    lr: NotNegative = 1e-3
    batch: Positive = 32
    schedule: training.Schedule = "cosine"
    warmup: PartialShare = 0.0
    weight_decay: NotNegative = 1e-4
    precision: training.Precision = "float32"

    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = True
    change: ClassVar[Change] = "finetuning"
    uses_head: ClassVar[bool] = True

    def passes(self, sizes: Sizes) -> Passes:
        """Count victim and copy in every epoch, and the signed steps through the last blocks."""
        seen = self.epochs * sizes.images
        inner = self.inner_steps * (sizes.blocks - 1 - self._moved(sizes.blocks)) / sizes.blocks
        return Passes(seen * (2 + inner), seen * (1 + inner))

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the copy with the victim's head; notes say the last epoch's loss.

        Raises:
            Incompatible: the victim tells no classes apart.
            UserError: it has no such block.

        """
        if victim.classes < 2:
            raise Incompatible(
                f"removalnet: expected a victim that classifies, got {victim.architecture.name} "
                "without a classification head; put finetune.classify before it"
            )
        depth, stop = len(victim.blocks), self._moved(len(victim.blocks)) + 1
        if stop > depth:
            raise UserError(f"removalnet: block: expected 0 to {depth - 1}, got {self.block}")
        model, teacher = clone(victim).to(ctx.device), clone(victim).to(ctx.device)
        teacher.requires_grad_(False)

        def loss_of(chosen: Tensor) -> Tensor:
            images = ctx.images.batch(chosen, ctx.device)
            with torch.no_grad():
                state = teacher.run_blocks(teacher.embed(images), 0, stop)  # (b, t, d)
                scores = _scores(teacher, state, stop)  # (b, k)
            labels = scores.argmax(1)
            wanted = self._elsewhere(teacher, state, labels, stop, ctx.rng)
            found = model.run_blocks(model.embed(images), 0, stop)
            said = _scores(model, found, stop)
            known, mixed = (
                F.log_softmax(each.float() / self.temperature, dim=1)
                for each in (said, _mixed(scores))
            )
            apart = F.kl_div(known, mixed, reduction="batchmean", log_target=True)
            return (
                self.scores_weight * self.temperature**2 * apart
                + self.state_weight * F.mse_loss(found, wanted)
                + self.label_weight * F.cross_entropy(said, labels)
            )

        fit = training.fit(model.parameters(), loss_of, len(ctx.images), self, ctx.rng)
        model.notes = {"final_loss": fit.losses[-1], "steps": fit.steps}
        return model.eval()

    def _moved(self, blocks: int) -> int:
        return (blocks - 1) // 2 if self.block is None else self.block

    def _elsewhere(
        self, teacher: VisionModel, state: Tensor, labels: Tensor, stop: int, rng: torch.Generator
    ) -> Tensor:
        """Move a state (b, t, d) away from where it is, while its classes (b,) stay."""
        unit = float(state.std(correction=0))
        channels = torch.randperm(state.shape[2], generator=rng)
        channels = channels[: round(self.shuffled * len(channels))].to(state.device)
        moved = state.clone()
        moved[..., channels] = state[..., channels.roll(1)]
        drawn = torch.rand(state.shape, generator=rng).to(state) * 2 - 1
        moved += self.noise * unit * drawn.tan()
        for _ in range(self.inner_steps):
            moved.requires_grad_(True)
            kept = F.cross_entropy(_scores(teacher, moved, stop).float(), labels)
            loss = kept - self.apart * (moved - state).square().mean().clamp_min(1e-12).log()
            (slope,) = torch.autograd.grad(loss, moved)
            moved = (moved - self.inner_lr * unit * slope.sign()).detach()
        return moved


def _scores(model: VisionModel, tokens: Tensor, start: int) -> Tensor:
    """Map the residual stream (b, t, d) before block `start` to class scores (b, k)."""
    return model.forward_head(model.finish(model.run_blocks(tokens, start)))


def _mixed(scores: Tensor) -> Tensor:
    """Average scores (b, k) with the farthest of the batch, where the class stays."""
    farthest = torch.cdist(scores.float(), scores.float()).argmax(1)
    mixed = (scores + scores[farthest]) / 2
    same = mixed.argmax(1) == scores.argmax(1)
    return torch.where(same[:, None], mixed, scores)


def _only(learning: nn.Module, frozen: nn.Module) -> None:
    """Have gradients end where nothing learns."""
    learning.requires_grad_(True)
    frozen.requires_grad_(False)
