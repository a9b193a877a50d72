"""An attack obtains a suspect from a released model, or (a control) without it.

It is a frozen dataclass whose fields are its settings, with four members:

| member | what it is |
| --- | --- |
| `offers` | what the owner may still see of the result |
| `derived` | false for a control: its suspect owes the victim nothing |
| `random` | false if the result does not depend on the seed |
| `run(victim, ctx)` | returns the suspect, and leaves the victim as it was |

What it has to report it leaves in `notes` of the model it returns.
Tensors that a thief keeps beside the model, such as a key of his own, it leaves in `secret`.
Ranges of settings have names in `bench.types`, such as `Positive` and `Share`.
A value outside is refused, in a suite and in Python.
A setting that is added once suites were run is a `Later` one: its default leaves their keys alone.

## Optional members

`bench.types` has a protocol for each; a misspelt one is refused when the attack registers.

| member | protocol | what it does |
| --- | --- | --- |
| `data` | `NamesData` | names the data set whose thief's images it gets, instead of the probe's |
| `labelled` | `NeedsLabels` | says that the thief's images must have labels or masks |
| `uses_base` | `UsesBase` | asks for the public, unmarked model as `ctx.base` |
| `uses_head` | `UsesHead` | says that the victim must have a classifier |
| `copies` | `UsesCopies` | says how many copies it takes; the others come by `ctx.copies` |
| `passes` | `CountsPasses` | says how many passes it takes; without it `bench plan` says ? |
| `looks_at` | `CountsImages` | counts the thief's images that it looks at |
| `victim_queries` | `CountsQueries` | counts the images that the victim answers for, for prices |
| `change` | `SaysChange` | says what it changes, for tables; without it that is "other" |
| `exact` | `IsExact` | says that the suspect computes what the victim does, to rounding |
| `adaptive` | `IsAdaptive` | says what the thief knows of the defence, in a few words |

Who makes up claims on innocents instead is an accuser: `bench list accusers`.
"""
