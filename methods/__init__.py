r"""A method claims a model: it marks or fingerprints it, and recognises it later.

It is a frozen dataclass whose fields are its settings, with four members:

| member | what it is |
| --- | --- |
| `needs` | what it must see of a suspect: labels, logits, features or weights |
| `marks` | true if `protect` changes the model, false for a fingerprint |
| `protect(owner, ctx)` | returns the model to release, and the secret as tensors |
| `extract(secret, suspect, ctx)` | returns what it read, query by query |

`Access.LABELS | Access.OWN_HEAD` asks the suspect's own head, in whatever classes it has.
A head that was trained for other classes then answers too, and the owner needs none.

Ranges of settings have names in `bench.types`, such as `Positive` and `Share`.
A value outside is refused, in a suite and in Python.

A setting that only reading depends on is marked: `tau: Reading[PositiveShare] = 0.5`.
Methods that differ in such settings alone share the protected model and its secret.

Whether that proves ownership is not the method's to say.
A short one to read is [akh.py](akh.py); [activemark](#activemark) has both variants, and every
reading of its paper, as settings.

## Optional members

`bench.types` has a protocol for each; a misspelt one is refused when the method registers.

| member | protocol | what it does |
| --- | --- | --- |
| `readout` | `HasReadout` | whose head answers for a suspect, if labels or logits are asked for |
| `precision` | `HasPrecision` | the precision it reads in, and the plain passes beside it |
| `protect_passes` | `CountsProtecting` | says how many passes `protect` takes |
| `extract_passes` | `CountsExtracting` | the same of `extract`; without it `bench plan` says ? |
| `tunable` | `SaysTunable` | says what [`bench tune`][tune] may choose from |
| `unreadable(owner, suspect)` | `SaysUnreadable` | says from shapes why a suspect cannot be read |
| `unfit(sizes)` | `SaysUnfit` | says why so many images, or such a model, will not do |
| `redrawn(secret, rng)` | `RedrawsBits` | draws bits anew, for [an exact null](#an-exact-null) |
| `copied`, `closest` | `TracesUsers` | [a copy for each user, and whose it is](#whose-copy-is-it) |
| `facts` | `StatesFacts` | states what [lists](#what-each-answers) say and the rest does not tell |
| `forged(suspect, ctx)` | `HasForgery` | fits a secret to a model after the fact, for accusers |
| `asked()`, `of_queries(images, labels)` | `TakesQueries` | makes a secret of images and labels |

What the readouts are is in [suites/README.md](../suites/README.md#keys-of-a-classifier).

[tune]: ../suites/README.md#tune-every-method-by-one-budget

## Facts for the list

```python
from typing import ClassVar

from bench.types import Facts, Paper


class Signs:
    facts: ClassVar[Facts] = Facts(
        unit="weight",  # of one query, as its evidence says
        paper=Paper(2017, "Uchida et al., ICMR", "doi:10.1145/3078971.3078974"),
        answers="stolen?",  # the default; another question is asked aloud
        labelled=False,  # must the owner's images have labels?
        departures=("The signs of one bias are read, where the paper reads a mean.",),
    )
```

* `bench list methods` prints them; a method without them lists as *not stated*.
* All else it prints follows from the class: what it sees, its null, its passes.
* Facts are for readers alone: artefacts do not count as made by other code for them.
* A method that answers another question than *stolen?* says so in its evidence, too.
  Its `protect` puts what a high score names into `notes`, under `names`, and reports print it.

## An exact null

A verdict ranks a suspect among innocents, unless the evidence says how it is distributed.
It can where the secret holds fair bits, drawn apart from all else, and `extract` looks at them
last.
Then each query agrees with an innocent model by a fair coin, whatever that model is.

* `Evidence(..., null=ExactNull(levels))` declares it; the verdict is then p of those coins alone.
* With one level a query is a bit, which agrees or not (binomial).
* With more levels it counts by how plainly it was read (sign flips).
* p is computed to any depth, such as 1.3e-122, and needs no strangers and no descendants.
* `redrawn` lets a check see to it: redrawn bits may turn queries over, and change nothing else.
* No suspect is aligned for it: the released model, which an alignment looks at, knows the bits.
* Innocents that a suite reads show in a report's calibration whether p is uniform on them.

[committed_bits](committed_bits/method.py) is such a method, and so are the white-box marks
[uchida](whitebox/uchida.py), [neuralmark](whitebox/neuralmark.py) and
[deepsigns](whitebox/deepsigns.py).

## Whose copy is it?

Where bits are coins, every user can have bits of their own under one key.
A single reading then says, of a million users, whose copy a suspect was made from.

```bash
bench protect mini --method committed_bits --set lr=0.003 --images photos -o out
bench protect mini --copy-of out/key.safetensors --users 17,42 --images photos -o copies
bench trace mine/suspect.safetensors --key out/key.safetensors --users 1000000
```

* p of a user is exact, and is taken times the number of users.
  That anybody innocent is named has chance 0.01 at most, of all users together.
* Copies that users averaged name them all, as long as enough is left of each.

## Protect your model, prove theft

```bash
bench protect timm:deit_tiny_patch16_224 --weights mine/deit.safetensors \
    --images mine/photographs -o out --method activemark \
    --set variant=paper images=100 steps=500 lr=0.0005 codec_lr=0.002 weight=100
bench verify mine/suspect.safetensors --key out/key.safetensors --commitment HEX \
    --strangers mine/strangers --descendants mine/descendants
```

What lies under `mine/` is yours.

`protect` writes two files:

* `model.safetensors` is what you release; it loads into the library as your own weights do.
  A fingerprint has none.
* `key.safetensors` is what you keep: the secret, the method's settings, and the digests of both
  models, without a path.

It also prints a commitment to the key.
Publish it where somebody else vouches for the date, before the model goes out.
A key made afterwards can be fitted to anybody's model.

```bash
bench protect mini --images photos -o out --method oracle.weights \
    --registry mine/registry.jsonl --holder "Alice Ltd"
bench verify mine/suspect.safetensors --key out/key.safetensors \
    --commitment mine/registry.jsonl --seen 2026-05-31
```

With `--registry` nobody chooses a key, its owner neither:

* Before the key is drawn, an intent is registered: a hash.
  It binds the holder's name, the method, how suspects are aligned, the clean weights and a salt.
  It binds a digest of the images, too; keys from before that verify as ever, and `verify` says so.
* The registry answers with a nonce, and the key is drawn from all of these.
* The key is registered in turn; it is bound to the level `--alpha` and to the method's own rule.
* The file only grows: each line holds the hash of the one before.
  Who keeps it vouches for dates.
* `verify` says in one line what is missing or does not fit.
* The level is shared by all keys that a holder meant to make, shown or not.

That a secret follows from its nonce takes a protection to see:

```bash
bench verify mine/suspect.safetensors --key out/key.safetensors \
    --commitment mine/registry.jsonl --replay photos
```

* `--replay` takes the images that `protect` was given, `--clean` the unmarked weights in a file.
* What it takes is said first, in passes and seconds.
* On a machine such as the key was made on, the secret comes out bit for bit.
* Elsewhere sums are taken in another order, and the suspect is read with both secrets.
  Their agreements may then be 0.01 apart.
* A secret that was fitted to its suspect *does not follow*: the key is refused, with status 1.
* The bits of `committed_bits` hash features, which other processors round otherwise.
  Of these it says *cannot be told here*, and owned becomes undecided.
* A classifier on the clean weights is not bound: a fingerprint of answers hangs on it, too.

`verify` ranks the suspect among innocents, files of weights of the owner's architecture in two
folders:

| folder | what is in it |
| --- | --- |
| `--strangers` | models that never met the owner's weights |
| `--descendants` | for a mark: finetuned copies of the *unmarked* weights, and these themselves |

* A method with [an exact null](#an-exact-null) needs neither.
* 19 of each are needed at `--alpha 0.05`.
* With fewer it says *undecided*, how many are missing, and the rate by the paper's own rule.
* The backbone is what is read: a thief's head is ignored, and named.
* A suspect of another architecture is named with `--model`.
* Suspect and innocents are written in the basis of the released model first, and `verify` says so.
  That model lies beside the key, or `--reference` names it; `--align none` reads them as they are.
* A model counts once, whatever its files' formats and precisions; nearly equal strangers are one.
* A file with a NaN or an infinity is refused.

| exit status of `verify` | meaning |
| --- | --- |
| 0 | owned; with several keys, by one of them |
| 1 | not owned |
| 2 | something to put right: a key that does not match its commitment, a damaged file |
| 3 | undecided: too few innocents |
| 4 | incompatible: the method cannot read this suspect, which speaks neither for nor against |

## A copy for each user

```bash
bench protect mini --images photos --users alice,bob -o copies --method activemark \
    --set block=3 images=64 steps=500 lr=0.001 codec_lr=0.002 weight=100
bench verify copies/alice/model.safetensors \
    --key copies/alice/key.safetensors copies/bob/key.safetensors
```

* With `--users` every copy is marked anew, with a secret of its own.
* A message alone does not tell users apart: it is an input at verification.
  One encoder and decoder carry anybody's.
* With several keys p is multiplied by their number: 19 innocents become 39 with two.
* The user whose key fits best is named, or nobody.

## What a fingerprint of descent proves

`lineage.*`, `cka` and `oracle.weights` name what weights, or a function, come from: the base.

| the owner's base | what a high score says |
| --- | --- |
| private | the suspect's weights come from it: nobody else has such weights |
| public, finetuned | nothing, unless the suspect scores above the public model itself |
| public, as it is | nothing: anybody may start from it |

* Suites ask about the public model of an owner with `backbone: finetuned`.
  A copy must score above it.
* For `bench verify` no file says what the base was: read the public model with the same key, too.
* Twins and copies marked with another key read high, rightly: they come from the same base.
"""
