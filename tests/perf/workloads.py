"""The work whose speed is watched, each beside the fewest passes that could do it.

A base that is timed against this tree may lack a method: each is imported where it is prepared.
"""

import contextlib
import dataclasses
import io
import shutil
import tempfile
import weakref
from pathlib import Path

import torch
import torch.nn.functional as F

from bench import testing
from bench.data import Images
from bench.models import Architecture, Head, View, build, clone, with_head
from bench.types import Access, Context
from bench.workload import Prepared, Workload

BLOCK = 2
"""Where mini is written to: three of its six blocks come after."""

DEEP = 5
"""Where DeiT-Tiny is: six of its twelve come after."""

SUITE = """
name: small
owners: [{embedded: mini}]
methods:
  - {name: activemark, steps: 2, batch: 4, images: 4, encoder_hidden: 16, decoder_hidden: 16}
attacks: [{name: control.identity}, {name: prune.l1, amount: 0.4}]
data: {digits: {max_images: 40}, photos: {max_images: 24}}
owner_images: photos
probe: digits
innocents: {strangers: 1, twin_seeds: 1, pretraining_steps: 1}
"""


def marking(model, ctx, block, **settings):
    """Embed as a user does; the ideal is the clean passes, each step's, and the extraction's."""
    from methods.activemark import ActiveMark

    mark = ActiveMark(block=block, index=3, **settings)
    paper = mark.variant == "paper"
    marked = clone(model).requires_grad_(False)
    last = len(model.blocks) if paper else len(model.blocks) - 1
    for part in marked.blocks[block + 1 : last]:
        part.requires_grad_(True)
    triggers = (ctx.images if paper else ctx.held_out).batch(slice(0, mark.images), ctx.device)
    images = triggers if paper else ctx.images.batch(slice(0, len(ctx.images)), ctx.device)
    chosen = torch.arange(mark.steps * mark.batch, device=ctx.device) % len(images)

    def passes():
        with torch.autocast(ctx.device.type, torch.bfloat16, enabled=mark.precision == "bfloat16"):
            with torch.no_grad():
                clean = marked.run_blocks(marked.embed(images), 0, block + 1)
                marked.finish(marked.run_blocks(clean, block + 1))
            for batch in chosen.split(mark.batch):
                tokens = clean[batch].requires_grad_(True)
                marked.finish(marked.run_blocks(tokens, block + 1)).sum().backward()
                marked.zero_grad(set_to_none=True)
            with torch.no_grad():
                read = marked.run_blocks(marked.embed(triggers), 0, None if paper else -1)
                marked.finish(read)

    return Prepared(lambda: mark.protect(model, fresh(ctx)), passes)


def fresh(ctx, seed=0):
    """Give every run the same draws."""
    return dataclasses.replace(ctx, rng=torch.Generator().manual_seed(seed))


def mini(device, needs=Access.WEIGHTS):
    ctx = dataclasses.replace(testing.context(party="owner"), device=device)
    return testing._owner_for(needs).to(device), ctx


def embedding(variant):
    def prepare(device):
        return marking(*mini(device), BLOCK, variant=variant, images=32, steps=32)

    return prepare


def deit_tiny(device):
    """End to end, from random weights; on a GPU with as many images as keep it busy."""
    sizes = (256, 32, 64) if device.type == "cuda" else (8, 3, 4)
    return transformer("deit_tiny_patch16_224", DEEP, *sizes, device)


def vit_large(device):
    """The paper's size, from random weights, after the block where the paper marks DINOv2."""
    return transformer("vit_large_patch14_dinov2.lvd142m", 18, 256, 16, 64, device)


def transformer(name, block, count, steps, batch, device):
    """Mark a model of timm's at 224 pixels; on a GPU in bfloat16."""
    model = build(Architecture("timm", name, 224, None)).to(device)
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, 224, 224), dtype=torch.uint8, generator=rng)
    images = Images(pixels, None, 0, tuple(map(str, range(count))))
    ctx = Context(device, rng, images, images.subset([]))
    precision = "bfloat16" if device.type == "cuda" else "float32"
    settings = {"images": count, "steps": steps, "batch": batch, "precision": precision}
    return marking(model, ctx, block, variant="paper", **settings)


def extraction(device):
    """1024 queries, every image of the owner's sixteen times."""
    from methods.activemark import ActiveMark

    owner, ctx = mini(device)
    mark = ActiveMark(variant="paper", block=BLOCK, index=3, images=64, steps=2)
    made = mark.protect(owner, ctx)
    many = {name: made.secret[name].repeat(16, *[1] * (made.secret[name].ndim - 1))
            for name in ("pixels", "messages")}  # fmt: skip
    view = View(made.model.to(device), mark.needs)
    images = many["pixels"].to(device).float() / 255

    @torch.inference_mode()
    def passes():
        for part in images.split(64):
            view.network.features(part)

    return Prepared(lambda: mark.extract({**made.secret, **many}, view, ctx), passes)


def protected_and_read(method, owner, ctx):
    view = View(owner, method.needs)

    def run():
        secret = method.protect(owner, fresh(ctx)).secret
        return method.extract(secret, view, fresh(ctx))

    return run


@torch.no_grad()
def there(model, images, batch, count):
    """Send `count` images through a model."""
    for number in range(0, count, batch):
        model.logits(images[torch.arange(min(batch, count - number)) % len(images)])


def there_and_back(model, images, batch, count):
    """Send `count` images through a frozen model and the gradient back to the pixels."""
    for number in range(0, count, batch):
        x = images[torch.arange(min(batch, count - number)) % len(images)].requires_grad_(True)
        torch.autograd.grad(model.logits(x).sum(), x)


def walking(device):
    """Eight walks of two hops by the authors' search, and a suspect's labels along them."""
    from methods.adv_tra import AdvTra

    owner, ctx = mini(device, Access.LABELS)
    method = AdvTra(trajectories=8, classes=3, max_iterations=20)
    model = clone(owner).requires_grad_(False)
    images = ctx.images.batch(slice(0, 16), device)
    notes = method.protect(owner, fresh(ctx)).notes
    # Of every hop tried each epoch takes h - 1 gradients and a label; the ends take theirs.
    back = notes["epochs"] * (method.half - 1) + notes["hops"] * (1 + method.half)
    read = notes["trajectories"] * (method.hops * method.length + 1)

    def passes():
        there_and_back(model, images, 8, back)
        there(model, images, 8, notes["epochs"])
        there(model, images, 16, 2 * read)

    return Prepared(protected_and_read(method, owner, ctx), passes)


def descending(device):
    """Sixteen points of twenty iterations, too few for any to be done, and a suspect's labels."""
    from methods.ipguard import IPGuard

    owner, ctx = mini(device, Access.LABELS)
    method = IPGuard(points=16, iterations=20)
    model = clone(owner).requires_grad_(False)
    images = ctx.images.batch(slice(0, 16), device)

    def passes():
        there_and_back(model, images, 16, 16 * method.iterations)
        there(model, images, 16, 3 * 16)

    return Prepared(protected_and_read(method, owner, ctx), passes)


def finetuning(device):
    """Two epochs of 64 digits; the ideal is forward, backward and step over tensors ready there."""
    from attacks.finetune import FinetuneClassify

    victim = testing.owner().to(device)
    ctx = dataclasses.replace(testing.context(), device=device)
    attack = FinetuneClassify(epochs=2)
    model = with_head(victim, Head(ctx.images.classes), fresh(ctx).rng)
    images = ctx.images.batch(slice(0, len(ctx.images)), device).repeat(attack.epochs, 1, 1, 1)
    labels = ctx.images.labels.repeat(attack.epochs).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=attack.lr, fused=True)

    def passes():
        for x, y in zip(images.split(attack.batch), labels.split(attack.batch), strict=True):
            F.cross_entropy(model.logits(x), y).backward()
            optimiser.step()
            optimiser.zero_grad()

    return Prepared(lambda: attack.run(victim, fresh(ctx)), passes)


def tail(device):
    """The later half of mini, there alone: what else a run does would hide half of a change."""
    model, ctx = mini(device)
    with torch.no_grad():
        tokens = model.run_blocks(model.embed(ctx.images.batch(slice(0, 64), device)), 0, 3)

    @torch.no_grad()
    def run():
        for _ in range(10):
            model.run_blocks(tokens, 3)

    return Prepared(run)


def suite(warm):
    """A suite as the command runs it: all of it, or with everything in the store already."""

    def prepare(device):
        from bench.cli import main

        folder = tempfile.mkdtemp()
        file, results = Path(folder, "small.yaml"), Path(folder, "results")
        file.write_text(SUITE)

        def run():
            if not warm:
                shutil.rmtree(results, ignore_errors=True)
            command = ["run", file, "--results", results, "--device", device, "--workers", 1]
            with contextlib.redirect_stdout(io.StringIO()):
                assert main([str(word) for word in command]) == 0

        if warm:
            run()
        weakref.finalize(run, shutil.rmtree, folder, ignore_errors=True)
        return Prepared(run, store=results / ".store")

    return prepare


WORKLOADS = [
    Workload("activemark.expressprint", embedding("expressprint")),
    Workload("activemark.paper", embedding("paper")),
    Workload("activemark.extract", extraction, limit=1.15),
    Workload("activemark.deit_tiny", deit_tiny, limit=1.25),
    Workload("activemark.vit_large", vit_large, limit=1.25, only="cuda"),
    Workload("adv_tra", walking),
    Workload("ipguard", descending),
    Workload("finetune.classify", finetuning, limit=1.3),
    Workload("model.tail", tail),
    Workload("suite.cold", suite(warm=False)),
    Workload("suite.warm", suite(warm=True)),
]
