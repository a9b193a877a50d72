import json
import pickle
import random
import time
import zipfile
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.data.embedded import WEIGHTS
from bench.models.building import blank, build, randomised
from bench.models.heads import Head
from bench.models.vision import Architecture
from bench.models.weights import load_state, read_weights, weights_digest
from bench.records.nouns import UserError
from bench.records.store import Store
from bench.runs.laboratory import Laboratory, load_owners
from bench.runs.owners import fetch, load_owner, place, refuse_others
from bench.suite import plan, reader
from bench.suite.owners import OwnerSettings
from bench.training.pretraining import ARCHITECTURE

MINI = OwnerSettings("embedded", "mini")
VIT = OwnerSettings("timm", "test_vit", weights="some.pth")


@pytest.fixture(scope="module")
def vit():
    """Weights of timm's test_vit, by timm's own names."""
    model = load_owner(OwnerSettings("timm", "test_vit", weights="random", seed=5), None)
    return {k: v.clone() for k, v in model.trunk.vit.state_dict().items()}


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """A hub nobody answers for, whatever the network is, and an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def one_line(settings, file, words):
    with pytest.raises(UserError, match=words) as found:
        load_owner(settings, file)
    assert "\n" not in str(found.value)
    return str(found.value)


def test_the_embedded_owner_is_the_shipped_file():
    model = load_owner(MINI, None)
    shipped = load_file(WEIGHTS / "mini.safetensors")
    assert model.architecture == ARCHITECTURE
    assert all(torch.equal(v, shipped[k]) for k, v in model.state_dict().items())
    assert not model.training


@pytest.mark.parametrize(("library", "name"), [("embedded", "mini"), ("timm", "test_vit2")])
def test_random_weights_are_fixed_by_their_seed_alone(library, name):
    def made(seed, global_seed):
        with torch.random.fork_rng():
            torch.manual_seed(global_seed)
            return load_owner(OwnerSettings(library, name, weights="random", seed=seed), None)

    assert weights_digest(made(3, 0)) == weights_digest(made(3, 1))
    assert weights_digest(made(3, 0)) != weights_digest(made(4, 0))


def test_drawing_random_weights_leaves_global_generators_alone():
    before = torch.get_rng_state(), random.getstate()
    randomised(ARCHITECTURE, 1)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


@pytest.mark.parametrize("wrap", [None, "state_dict", "model", "teacher", "model_state_dict"])
def test_a_checkpoint_is_read_from_under_whatever_key_it_lies(tmp_path, vit, wrap):
    file = tmp_path / "some.pth"
    torch.save({wrap: vit, "epoch": 3, "optimizer": {0: "adam"}} if wrap else vit, file)
    model = load_owner(VIT, file)
    assert all(torch.equal(v, vit[k]) for k, v in model.trunk.vit.state_dict().items())
    assert model.architecture.head == "own"


def test_a_safetensors_file_by_the_librarys_names_or_ours_is_read(tmp_path, vit):
    digests = set()
    for name, prefix in (("theirs", ""), ("ours", "trunk.vit.")):
        file = tmp_path / f"{name}.safetensors"
        save_file({f"{prefix}{k}": v for k, v in vit.items()}, file)
        digests.add(weights_digest(load_owner(VIT, file)))
    assert len(digests) == 1


def test_half_precision_weights_are_widened(tmp_path, vit):
    file = tmp_path / "half.safetensors"
    save_file({k: v.half() for k, v in vit.items()}, file)
    model = load_owner(VIT, file)
    for name, value in model.trunk.vit.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, vit[name].half().float())


def test_a_convolutional_model_is_read_by_its_own_names(tmp_path):
    drawn = load_owner(OwnerSettings("timm", "test_resnet", weights="random"), None)
    save_file(drawn.trunk.net.state_dict(), tmp_path / "net.safetensors")
    settings = OwnerSettings("timm", "test_resnet", weights="net.safetensors")
    made = load_owner(settings, tmp_path / "net.safetensors")
    assert weights_digest(made) == weights_digest(drawn)


@pytest.mark.parametrize("timm_tower", [False, True])
def test_an_open_clip_checkpoint_gives_its_image_tower(tmp_path, timm_tower):
    own = {"width": 32, "layers": 2, "patch_size": 8, "head_width": 16, "image_size": 32}
    timms = {"timm_model_name": "test_vit", "timm_pool": "", "image_size": 160}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    name = f"tower-{timm_tower}".lower()
    config = {"embed_dim": 24, "vision_cfg": timms if timm_tower else own, "text_cfg": text}
    (tmp_path / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / f"{name}.json")
    clip, file = open_clip.create_model(name).eval(), tmp_path / "clip.pth"
    torch.save(clip.state_dict(), file)
    model = load_owner(OwnerSettings("open_clip", name, weights="clip.pth"), file)
    images = torch.rand(2, 3, *model.preprocess.size)
    with torch.no_grad():
        expected = clip.encode_image(model.normalise(images))
        assert torch.allclose(model.features(images), expected, atol=1e-5)


@pytest.mark.shared_data
def test_published_weights_are_read_and_keep_their_classifier(data_root):
    file = data_root / "weights" / "deit_tiny_patch16_224.safetensors"
    settings = OwnerSettings("timm", "deit_tiny_patch16_224", weights=file.name)
    model, published = load_owner(settings, file), load_file(file)
    assert model.architecture.head == "own"
    assert model.trunk.vit.state_dict().keys() == published.keys()
    assert torch.equal(model.trunk.vit.norm.weight, published["norm.weight"].float())


# What goes wrong, one line each.


def test_a_missing_file_is_named(tmp_path):
    one_line(VIT, tmp_path / "gone.pth", r"expected weights at .*gone\.pth, found no such file")


@pytest.mark.parametrize("kept", [0, 1, 7, 100, 0.5, 0.999])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_truncated_file_is_the_users_to_replace(tmp_path, vit, suffix, kept):
    file = tmp_path / f"torn{suffix}"
    save_file(vit, file) if suffix == ".safetensors" else torch.save(vit, file)
    data = file.read_bytes()
    file.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    message = one_line(VIT, file, "torn")
    assert str(tmp_path) not in message


class Bomb:
    """A pickle that leaves a trace if anybody ever runs it."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare", "nested"])
def test_a_checkpoint_with_code_in_it_is_refused_and_the_code_never_runs(tmp_path, vit, form):
    trace, file = tmp_path / "trace", tmp_path / "evil.pth"
    content = {"state_dict": {**vit, "bomb": Bomb(trace)}} if form == "nested" else Bomb(trace)
    if form == "bare":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form != "legacy")
    message = one_line(VIT, file, r"evil\.pth: expected a PyTorch checkpoint of tensors only")
    assert "safetensors" in message
    assert not trace.exists()
    torch.load(file, weights_only=False) if form != "bare" else pickle.loads(file.read_bytes())
    assert trace.exists()  # the bomb was a real one


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "expected a state dict, got a list"),
        (torch.ones(2), "expected a state dict, got a Tensor"),
        ({"epoch": 3}, "name by name a tensor, got 'epoch': int"),
        ({"net": {"w": torch.ones(1)}}, "got 'net': dict"),
        ({0: torch.ones(1)}, "got 0: Tensor"),
    ],
)
def test_a_checkpoint_of_something_else_says_what_it_holds(tmp_path, content, words):
    torch.save(content, tmp_path / "odd.pth")
    one_line(VIT, tmp_path / "odd.pth", words)


def test_no_damaged_bytes_come_through_as_anything_but_one_line(tmp_path, vit):
    torch.save({k: vit[k] for k in list(vit)[:3]}, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as archive:
        program = archive.read("whole/data.pkl")
    rng, file = random.Random(0), tmp_path / "noise.pth"
    for _ in range(300):
        noise = bytearray(program)
        for _ in range(rng.randint(1, 8)):
            noise[rng.randrange(len(noise))] = rng.randrange(256)
        file.write_bytes(noise)
        one_line(VIT, file, r"noise\.pth")


@pytest.mark.parametrize(
    ("taken_from", "words"),
    [("test_vit2", r"of test_vit, got another architecture's \(lacks 'cls_token', "),
     ("test_resnet", r"lacks 'cls_token', 'pos_embed', 'patch_embed\.proj\.weight' and 75 more")],
)  # fmt: skip
def test_another_architectures_weights_are_refused_by_the_first_three_differences(
    tmp_path, taken_from, words
):
    other = load_owner(OwnerSettings("timm", taken_from, weights="random"), None)
    trunk = other.trunk.vit if taken_from == "test_vit2" else other.trunk.net
    save_file(trunk.state_dict(), tmp_path / "other.safetensors")
    one_line(VIT, tmp_path / "other.safetensors", words)


def test_a_wider_models_weights_are_refused_by_the_first_shape(tmp_path, vit):
    wide = {k: torch.zeros(*(2 * n for n in v.shape)) for k, v in vit.items()}
    save_file(wide, tmp_path / "wide.safetensors")
    one_line(VIT, tmp_path / "wide.safetensors", r"shape \(2, 2, 128\) instead of \(1, 1, 64\)")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (OwnerSettings("timm", "vit_base_patch16_225"), "did you mean 'vit_base_patch16_224'"),
        (OwnerSettings("timm", "qqq"), "timm has no model 'qqq'$"),
        (OwnerSettings("timm", "vit_base_patch16_224.dono"), "timm has no weights .*_224.dino'"),
        (OwnerSettings("open_clip", "ViT-B-33", weights="random"), "did you mean 'ViT-B-32'"),
        (OwnerSettings("open_clip", "ViT-B-32", pretrained="opnai"), "did you mean 'openai'"),
    ],
)
def test_a_name_no_library_has_gets_the_nearest_one(settings, words):
    one_line(settings, None, words)


@pytest.mark.parametrize(
    "settings",
    [
        OwnerSettings("timm", "test_vit"),
        OwnerSettings("open_clip", "ViT-B-32", pretrained="laion2b_s34b_b79k"),
    ],
    ids=["timm", "open_clip"],
)
def test_a_hub_that_does_not_answer_is_told_at_once(no_hub, settings, capfd, caplog):
    start = time.monotonic()
    one_line(settings, None, "expected weights from the model hub, could not get them .*weights:")
    assert time.monotonic() - start < 20
    assert capfd.readouterr().err == ""
    assert caplog.records == []


def test_weights_in_the_hubs_cache_need_no_hub(no_hub, tmp_path, vit):
    folder = tmp_path / "cache" / "models--timm--test_vit.r160_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(vit, folder / "snapshots" / ("0" * 40) / "model.safetensors")
    model = load_owner(OwnerSettings("timm", "test_vit"), None)
    assert all(torch.equal(v, vit[k]) for k, v in model.trunk.vit.state_dict().items())


COMMITS = ("a" * 40, "b" * 40)


def cached(cache, repository, file, commit, latest=False):
    """Make room for a file as the hub's client keeps one of a commit."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    if latest:
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    return folder / "snapshots" / commit / file


@pytest.fixture(params=["timm", "open_clip"])
def two_commits(request, no_hub, tmp_path, vit, monkeypatch):
    """Settings of a model, and the weights of its two commits in an offline cache."""
    cache = tmp_path / "cache"
    if request.param == "timm":
        repository, file, settings = "timm/test_vit.r160_in1k", "model.safetensors", {}
        own, prefix = vit, ""
    else:
        sizes = {"width": 32, "layers": 2, "patch_size": 8, "head_width": 16, "image_size": 32}
        text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
        config = {"embed_dim": 24, "vision_cfg": sizes, "text_cfg": text}
        (tmp_path / "pinned.json").write_text(json.dumps(config))
        open_clip.add_model_config(tmp_path / "pinned.json")
        repository, file = "someone/pinned", "open_clip_model.safetensors"
        tag = {**open_clip.get_pretrained_cfg("ViT-B-32", "openai"), "hf_hub": f"{repository}/"}
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "pinned", {"mine": tag})
        settings = {"pretrained": "mine"}
        own, prefix = open_clip.create_model("pinned").state_dict(), "visual."
    for i, commit in enumerate(COMMITS):
        shifted = {k: v + i if v.is_floating_point() else v for k, v in own.items()}
        save_file(shifted, cached(cache, repository, file, commit, latest=i == 1))
    name = "test_vit" if request.param == "timm" else "pinned"
    first = f"{prefix}patch_embed.proj.weight" if not prefix else f"{prefix}conv1.weight"
    return OwnerSettings, {"library": request.param, "name": name, **settings}, own[first]


def test_a_revision_pins_the_commit_of_weights_in_an_offline_cache(two_commits):
    make, settings, first = two_commits

    def stem(**more):
        trunk = load_owner(make(**settings, **more), None).trunk
        return trunk.vit.patch_embed.proj.weight if settings["library"] == "timm" else (
            trunk.visual.conv1.weight
        )  # fmt: skip

    assert torch.equal(stem(revision=COMMITS[0]), first)
    assert torch.equal(stem(revision=COMMITS[1]), first + 1)
    assert torch.equal(stem(), first + 1)  # the latest


def test_a_place_on_the_hub_says_what_is_cached_and_how_to_fetch_it(two_commits):
    make, settings, _ = two_commits
    there, gone = (place(make(**settings, revision=r)) for r in (COMMITS[0], "c" * 40))
    assert (there.cached, gone.cached) == (True, False)
    assert gone.command.startswith(f"hf download {gone.repository} ")
    assert gone.command.endswith(f"--revision {'c' * 40}")
    with pytest.raises(UserError, match=f"{gone.repository}: expected weights on the hub") as said:
        fetch(gone)
    assert "\n" not in str(said.value)


def test_a_commit_that_is_not_there_is_the_users_to_put_right(no_hub):
    settings = OwnerSettings("timm", "test_vit", revision="d" * 40)
    one_line(settings, None, "expected weights from the model hub, could not get them")


def test_weights_kept_elsewhere_than_on_the_hub_have_no_revision(monkeypatch, no_hub):
    tag = {**open_clip.get_pretrained_cfg("ViT-B-32", "openai"), "hf_hub": ""}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED["ViT-B-32"], "openai", tag)
    settings = OwnerSettings("open_clip", "ViT-B-32", pretrained="openai", revision="d" * 40)
    one_line(settings, None, "revision: expected none, the library keeps these weights elsewhere")
    assert place(settings) is None


def test_other_weights_than_the_digest_says_are_refused_in_one_line():
    expected = OwnerSettings("timm", "test_vit", digest="0" * 16)
    refuse_others(expected, "0" * 16)
    refuse_others(OwnerSettings("timm", "test_vit"), "1" * 16)
    with pytest.raises(UserError, match=f"digest {'0' * 16}, got {'1' * 16}.*revision") as said:
        refuse_others(expected, "1" * 16)
    assert "\n" not in str(said.value)


def test_a_run_refuses_other_weights_than_its_suite_expects(tmp_path):
    text = """
name: tiny
owners: [{embedded: mini, digest: DIGEST}]
methods: [{name: oracle.weights}]
attacks: [{name: control.identity}]
data: {digits: {max_images: 8}}
owner_images: digits
probe: digits
innocents: {strangers: 0, twin_seeds: 0}
"""

    def start(digest):
        (tmp_path / "suite.yaml").write_text(text.replace("DIGEST", digest))
        made = plan.make(reader.load(tmp_path / "suite.yaml"), None)
        laboratory = Laboratory(made, Store(tmp_path / "store"), None, torch.device("cpu"))
        load_owners(laboratory)

    start(weights_digest(load_owner(MINI, None)))
    with pytest.raises(UserError, match=r"owner 'mini': expected weights of digest 0{16}, got"):
        start('"0000000000000000"')  # although they are in the store


def test_what_is_expected_of_weights_is_no_part_of_their_name_and_a_revision_is():
    plain, pinned = OwnerSettings("timm", "test_vit"), OwnerSettings(
        "timm", "test_vit", revision="a" * 40, digest="b" * 16
    )  # fmt: skip
    assert pinned.spec().args == {**plain.spec().args, "revision": "a" * 40}


@pytest.mark.parametrize(
    "settings",
    [
        {"library": "timm", "name": "test_vit", "weights": "a.pth"},
        {"library": "timm", "name": "test_vit", "weights": "random"},
        {"library": "embedded", "name": "mini"},
    ],
)
def test_a_revision_of_what_is_not_on_the_hub_is_refused(settings):
    with pytest.raises(UserError, match="revision: expected none unless the weights come from"):
        OwnerSettings(**settings, revision="a" * 40)


@pytest.mark.parametrize(
    "architecture",
    [
        Architecture("embedded", "mini"),
        Architecture("timm", "test_vit", head="own"),
        Architecture("timm", "test_vit2", head=Head(3)),
        Architecture("timm", "test_resnet"),
        Architecture("timm", "eva02_tiny_patch14_224"),  # computes buffers of its own
    ],
    ids=lambda a: a.name,
)
def test_a_blank_model_with_weights_loaded_is_one_that_was_drawn(architecture):
    drawn = build(architecture)
    state = {k: v.clone() for k, v in drawn.state_dict().items()}
    filled = load_state(blank(architecture), state, "state")
    images = torch.rand(1, 3, *drawn.preprocess.size)
    with torch.no_grad():
        assert torch.equal(filled(images), drawn(images))


def test_reading_weights_never_unpickles_a_safetensors_name(tmp_path):
    torch.save({"w": Path("code")}, tmp_path / "pickled.safetensors")
    with pytest.raises(UserError, match="got a pickle of other things, which is not opened"):
        read_weights(tmp_path / "pickled.safetensors")


def test_the_width_of_a_clip_projection_is_no_number_of_classes():
    import timm

    from bench.models.libraries.timm import classifies
    from bench.runs.owners import architecture_of

    clip = "vit_large_patch14_clip_224"
    for name, head in ((f"{clip}.openai", None), (f"{clip}.openai_ft_in1k", "own")):
        assert architecture_of(OwnerSettings("timm", name)).head == head
    for name in timm.list_models(pretrained=True):  # what a tag says of the weights, told apart
        classes = timm.get_pretrained_cfg(name).num_classes
        labels = {1000, 11221, 11821, 19168, 21841, 21842, 21843, 115217}
        assert classifies(Architecture("timm", name)) == (classes in labels), (name, classes)


def test_a_clip_towers_projection_in_a_file_is_left_out(tmp_path):
    import timm

    name = "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m"
    file = tmp_path / "clip.safetensors"
    save_file(timm.create_model(name, num_classes=512).state_dict(), file)
    model = load_owner(OwnerSettings("timm", name, weights="clip.safetensors"), file)
    assert model.classes == 0
    assert not [key for key in model.state_dict() if ".head." in key]
