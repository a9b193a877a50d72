"""An accuser makes up a claim on a model that owes him nothing, with somebody else's method.

A judge reads the forged secret off the accused as he would an honest one, and off strangers.
It is a frozen dataclass whose fields are its settings, with four members:

| member | what it is |
| --- | --- |
| `accuses` | "stranger", a third party, or "owner", who made and released the model |
| `post_hoc` | true if the claim is made up for one innocent, by looking at it |
| `stopped_by` | which check of a registered commitment refuses the claim |
| `accuse(case, ctx)` | returns the forged secret, and the model that he shows as his |

The checks of a registry are these:

| `stopped_by` | what refuses the claim |
| --- | --- |
| "count" | all keys that he tried are registered, and the level pays for each |
| "date" | the key is younger than the model that it accuses |
| "name" | the key is another holder's |
| "replay" | the committed method, model and seed do not make the secret again |

## Optional members

| member | protocol | what it does |
| --- | --- | --- |
| `surrogates` | `UsesSurrogates` | a setting: how many public models he has |
| `unsuited(method)` | `SaysUnsuited` | says why he can do nothing with a method |
| `passes(method, sizes)` | `CountsAccusing` | says how many passes it takes |
"""
