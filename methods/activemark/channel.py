"""The way of a message through a model: where e writes it, where d reads it, what arrives."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.data import sent
from bench.models import VisionModel
from bench.training import (
    Choice,
    Precision,
    activation_profile,
    choose_block,
    in_batches,
    passes,
)
from bench.types import Context, Incompatible, UserError

BATCH = 64
"""Images that are read together."""

PROFILE_IMAGES = 100
"""Images of the activation profile (section 3.2.4)."""


@dataclass(frozen=True, slots=True)
class Wiring:
    """What e, d and the comparison are connected to; `ActiveMark` explains the settings."""

    block: int | Literal["auto"]
    block_rule: Literal["first_massive", "largest_jump"]
    axis: Literal["token", "channel"]
    index: int | Literal["massive", "random"]
    encoder_input: Literal["block_output", "block_input"]
    encoder_output: Literal["sigmoid", "linear"]
    read: Literal["embedding", "output_token", "last_block_input"]
    fidelity_on: Literal["embedding", "tokens"]
    binarise: Literal[">=", ">"]
    token_match: Literal["index", "patch", "relative"]
    depth_match: Literal["absolute", "from_end"]
    width_match: Literal["incompatible", "pad"]
    precision: Precision


class Link(NamedTuple):
    """Where the message goes: after `block`, at `place`, in a model of `depth` blocks."""

    block: int
    place: int
    depth: int
    prefix: int
    tokens: int


class Codec(nn.Module):
    """The encoder e and the decoder d: two fully connected layers each (Fig. 1)."""

    def __init__(
        self, written: int, read: int, bits: int, encoder: int, decoder: int, output: str
    ) -> None:
        super().__init__()
        self.written, self.read, self.bits, self.output = written, read, bits, output
        self.encoder = nn.Sequential(
            nn.Linear(written + bits, encoder), nn.ReLU(), nn.Linear(encoder, written)
        )
        self.decoder = nn.Sequential(nn.Linear(read, decoder), nn.ReLU(), nn.Linear(decoder, bits))

    @staticmethod
    def of(state: Mapping[str, Tensor], output: str) -> Codec:
        """Rebuild a codec from its tensors."""
        first, last = state["encoder.0.weight"], state["encoder.2.weight"]
        read, bits = state["decoder.0.weight"].shape[1], state["decoder.2.weight"].shape[0]
        hidden = state["decoder.0.weight"].shape[0]
        with torch.device("meta"):  # first weights would be drawn only to be thrown away
            codec = Codec(last.shape[0], read, bits, first.shape[0], hidden, output)
        codec.load_state_dict(dict(state), assign=True)
        return codec.eval()

    def draw(self, rng: torch.Generator) -> Codec:
        """Initialise every layer uniformly in 1 / sqrt(fan-in), PyTorch's own rule, from `rng`."""
        with torch.no_grad():
            for layer in [*self.encoder, *self.decoder]:
                if isinstance(layer, nn.Linear):
                    bound = layer.in_features**-0.5
                    layer.weight.uniform_(-bound, bound, generator=rng)
                    layer.bias.uniform_(-bound, bound, generator=rng)
        return self

    def encode(self, token: Tensor, message: Tensor) -> Tensor:
        """Map token (b, d) and message (b, n) to the token that replaces it (b, d)."""
        made = cast(Tensor, self.encoder(torch.cat([token, message.to(token.dtype)], dim=1)))
        return made.sigmoid() if self.output == "sigmoid" else made

    def decode(self, read: Tensor) -> Tensor:
        """Map what was read (b, r) to logits of the bits (b, n); a bit is sigmoid >= 1/2."""
        return cast(Tensor, self.decoder(read))


@dataclass(frozen=True, slots=True, eq=False)
class Channel:
    """One place in models of one shape, the e and d that use it, and how they are connected."""

    link: Link
    codec: Codec
    wiring: Wiring

    @staticmethod
    def of(secret: Mapping[str, Tensor], wiring: Wiring, device: torch.device) -> Channel:
        """Rebuild a channel from its tensors."""
        state = {k.removeprefix("codec."): v for k, v in secret.items() if k.startswith("codec.")}
        codec = Codec.of(state, wiring.encoder_output).to(device)
        return Channel(Link(*secret["link"].tolist()), codec, wiring)

    def tensors(self) -> dict[str, Tensor]:
        """Return what `of` rebuilds it from, on the CPU."""
        state = {f"codec.{k}": v.detach().cpu() for k, v in self.codec.state_dict().items()}
        return {**state, "link": torch.tensor(self.link)}

    def fitted(self, model: VisionModel) -> Channel:
        """Find the owner's place in a suspect.

        Raises:
            Incompatible: there is none.

        """
        link = found_again(self.wiring, self.link, self.codec.written, model)
        return dataclasses.replace(self, link=link)

    def up_to_b(self, model: VisionModel, images: Tensor) -> tuple[Tensor, Tensor]:
        """Run p on images (b, 3, h, w): what e sees, and the output of block b (b, n, d)."""
        before = model.run_blocks(model.embed(images), 0, self.link.block)
        after = model.run_blocks(before, self.link.block, self.link.block + 1)
        return self._pick(before if self.wiring.encoder_input == "block_input" else after), after

    def write(self, source: Tensor, after: Tensor, message: Tensor) -> Tensor:
        """Return the output of block b (b, n, d) with the message (b, bits) written into it."""
        token = self.codec.encode(self._sized(source, self.codec.written), message)
        return self._put(after, self._sized(token, source.shape[1]))

    def beyond_b(self, model: VisionModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Run q on (b, n, d): what fidelity compares, and what d sees."""
        before = model.run_blocks(tokens, self.link.block + 1, self.link.depth - 1)
        after = model.run_blocks(before, self.link.depth - 1, self.link.depth)
        read, on = self.wiring.read, self.wiring.fidelity_on
        final = model.finish(after) if read != "last_block_input" or on == "embedding" else after
        embedding = model.embedding(final) if "embedding" in (read, on) else final
        seen = {
            "last_block_input": lambda: self._pick(before),
            "output_token": lambda: self._pick(final),
            "embedding": lambda: embedding,
        }[read]()
        return (embedding if on == "embedding" else after), seen

    def decode(self, seen: Tensor) -> Tensor:
        """Map what d sees to logits of the bits (b, bits)."""
        return self.codec.decode(self._sized(seen, self.codec.read))

    def wrong(
        self,
        model: VisionModel,
        pixels: Tensor,
        messages: Tensor,
        owner_norm: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Say which bits arrive wrong (n, bits): the suspect's p and q, the owner's e and d."""
        device = model.mean.device

        def wrong(part: slice) -> Tensor:
            images = sent(pixels[part], device).float() / 255
            if owner_norm is not None:
                # The suspect's own normalisation undoes itself: the owner's is left. Resized
                # before, because that clamps to [0, 1].
                mean, std = (sent(value, device) for value in owner_norm)
                images = model.normalise(images) * model.std + model.mean
                images = (images - mean) / std * model.std + model.mean
            message = sent(messages[part], device)
            source, after = self.up_to_b(model, images)
            logits = self.decode(self._seen(model, self.write(source, after, message)))
            read = logits >= 0 if self.wiring.binarise == ">=" else logits > 0
            return read != message.bool()

        with torch.inference_mode(), passes(device, self.wiring.precision):
            found = list(in_batches(len(pixels), BATCH, wrong))
        return torch.cat(found).cpu()  # the only wait for the device

    def _seen(self, model: VisionModel, tokens: Tensor) -> Tensor:
        """Run q no further than d needs it."""
        tokens = model.run_blocks(tokens, self.link.block + 1, self.link.depth - 1)
        if self.wiring.read == "last_block_input":
            return self._pick(tokens)
        final = model.finish(model.run_blocks(tokens, self.link.depth - 1, self.link.depth))
        return self._pick(final) if self.wiring.read == "output_token" else model.embedding(final)

    def _pick(self, tokens: Tensor) -> Tensor:
        """Take the token (b, d), or the channel of all tokens (b, n), from (b, n, d)."""
        place = self.link.place
        return tokens[:, place] if self.wiring.axis == "token" else tokens[:, :, place]

    def _put(self, tokens: Tensor, value: Tensor) -> Tensor:
        """Return (b, n, d) with `value` in that place."""
        made = tokens.clone()
        if self.wiring.axis == "token":
            made[:, self.link.place] = value.to(made.dtype)
        else:
            made[:, :, self.link.place] = value.to(made.dtype)
        return made

    def _sized(self, value: Tensor, width: int) -> Tensor:
        """Bring (b, w) to (b, `width`), with zeros or by cutting, where the settings allow it."""
        if value.shape[1] == width:
            return value
        if self.wiring.width_match == "incompatible":
            raise Incompatible(f"expected the owner's width {width}, got {value.shape[1]}")
        return F.pad(value, (0, width - value.shape[1]))  # a negative pad cuts


def found_again(how: Wiring, link: Link, width: int, model: VisionModel) -> Link:
    """Find the owner's place in a suspect, which tokens or channels of `width` are written to.

    Raises:
        Incompatible: there is none.

    """
    depth, tokens, index = len(model.blocks), count_tokens(model), link.place
    block = link.block + (depth - link.depth if how.depth_match == "from_end" else 0)
    if not 0 <= block < depth - 1:
        raise Incompatible(f"expected more than {block + 1} blocks, got {depth}")
    if how.axis == "token" and index >= link.prefix:
        if how.token_match == "patch":
            index += model.prefix - link.prefix
        elif how.token_match == "relative":
            index = model.prefix + _same_spot(
                index - link.prefix, link.tokens - link.prefix, tokens - model.prefix
            )
    found = model.width if how.axis == "token" else tokens
    if found != width and how.width_match == "incompatible":
        what = "width" if how.axis == "token" else "token count"
        raise Incompatible(f"expected the owner's {what} {width}, got {found}")
    if index >= (tokens if how.axis == "token" else model.width):
        raise Incompatible(f"expected a {how.axis} {index}, the suspect has none")
    return Link(block, index, depth, model.prefix, tokens)


@torch.no_grad()
def count_tokens(model: VisionModel) -> int:
    """Count the tokens between a model's blocks, prefix tokens with them."""
    blank = torch.zeros(1, 3, *model.preprocess.size, device=model.mean.device)
    return model.embed(blank).shape[1]


def wrong_block(block: int | Literal["auto"], depth: int) -> str:
    """Say that nothing can be written to the output of a block, for no other follows; or empty."""
    if block == "auto" or 0 <= block <= depth - 2:
        return ""
    return f"block: expected 0 to {depth - 2} in a model of {depth} blocks, got {block}"


def find_link(
    how: Wiring, model: VisionModel, last: int, ctx: Context
) -> tuple[Link, Choice | None]:
    """Find where to write in the owner's model; a block that is chosen is `last` at most."""
    depth = len(model.blocks)
    if wrong := wrong_block(how.block, depth):
        raise UserError(wrong)
    choice = None
    if how.block == "auto" or how.index == "massive":
        order = torch.randperm(len(ctx.images), generator=ctx.rng)
        sample = ctx.images.subset(order[:PROFILE_IMAGES].tolist())
        profile = activation_profile(model, sample, ctx.device)
    if how.block == "auto":
        choice = choose_block(profile, how.block_rule, last)
    block = choice.block if choice else int(how.block)
    with torch.no_grad():
        tokens = model.embed(ctx.images.batch(slice(0, 1), ctx.device)).shape[1]
    size = tokens if how.axis == "token" else model.width
    if how.index == "random":
        index = int(torch.randint(size, (), generator=ctx.rng))
    elif how.index == "massive":
        index = profile[block].token if how.axis == "token" else profile[block].channel
    else:
        index = how.index
    if not 0 <= index < size:
        raise UserError(f"index: expected 0 to {size - 1} ({how.axis} axis), got {index}")
    return Link(block, index, depth, model.prefix, tokens), choice


def _same_spot(patch: int, owners: int, suspects: int) -> int:
    """Find the patch of a square grid of `suspects` where `patch` lies in one of `owners`."""
    here, there = math.isqrt(owners), math.isqrt(suspects)
    if here**2 != owners or there**2 != suspects:
        raise Incompatible(f"expected square grids of patches, got {owners} and {suspects}")
    row, column = divmod(patch, here)
    return (row * there // here) * there + column * there // here
