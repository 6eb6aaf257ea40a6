"""docs/policy.md: what a policy file may say, from its structs."""

from __future__ import annotations

from typing import Final

from nexus.cacheproxy.policies import roles
from nexus.policy.policyfile import PolicyFile, Role
from nexus.reference.configuration import setting_rows

__all__ = ["render"]

_INTRODUCTION: Final = """\
# Policy file of the cacheproxy

*Written by `scripts/generate-docs` from the structs; edit those instead.*

`policy_file: policy.yaml` in the settings, or `--policy policy.yaml`. Without one the cacheproxy
is a pure pass-through. The least that is useful:

```yaml
policies:
  - match: GET
    ttl: 60
```

That keeps the replies to GET of hot keys in the proxy for at most 60 s (never staler than
`near_cache.max_staleness_ms`, whatever the ttl), makes concurrent reads of one key one read at
Redis, and lets a hot key live 120 s longer. No leases. Everything that a rule may say:

```yaml
policies:
  - match: GET                   # exceptions first
    keys: "product:secret:*"
    enabled: false
  - match: [GET, HGETALL]
    keys: "product:*"
    ttl: 60
    near_cache: hot
    stampede: {mode: lease, lease_wait_ms: 1000, lease_ttl_ms: 10000}
    negative_ttl: 1
    hot: {threshold: 10, window_seconds: 10, extend_seconds: 120, max_total_seconds: 3600}
    tags: ["products", "product-{1}"]
  - match: SET
    keys: "user:*:cart"
    tags: ["carts"]
```

**Which rule applies.** The first in the file that names the command and fits the key; the others
are not looked at. A rule that an earlier one leaves no key for is an error at load. `NEXUS POLICY
[command] key` says which rule applies to a key and why.

**Keys** are Redis's glob patterns, byte by byte and with case: `*`, `?`, `[ab]`, `[^a]`, `[a-z]`,
`\\\\x` for a literal `x`. An unclosed `[` and a trailing backslash are errors.

**Tags** are no decision between rules: a key joins those of every enabled rule that fits it. A rule
for reads tags on every command that stores a value under the key, a rule for writes only on its own
commands. See [tags.md](tags.md).

**Reloading.** The file's content is looked at four times a second in every worker, and on SIGHUP.
A broken one changes nothing: the last good one stays in force, also in a worker that starts
meanwhile; the log, `NEXUS POLICY`, `NEXUS STATS` (`policy_error`) and
`nexus_cache_policy_reloads_total{result="refused"}` say so, the first three with file, line and
setting. `nexus check policy.yaml` and `python -m nexus.cacheproxy --check` say it beforehand. At
the start a broken file is an error (exit code 2). What comes into force empties the near-cache.

**Switch.** `NEXUS POLICY OFF` makes every worker a pass-through within a quarter of a second and
`NEXUS POLICY ON` brings the rules back; restarted workers keep the switch, a restarted service
starts with the policy on.

**Stampedes.** Leases, early refresh, expired values and the guard against late fills are explained
in [stampede.md](stampede.md).

**Hot keys.** A key is hot when `hot.threshold` reads came within `hot.window_seconds`, counted in
each worker by a sketch of fixed size (it may count too high, never too low); hits in the
near-cache count too, looked at every ten seconds. Its time to live at Redis then grows by
`hot.extend_seconds`: once in a window over all workers and proxies, only if it has one, and for
`hot.max_total_seconds` after the first growth at most; a time to live that its owner sets anew
starts afresh. The marker that keeps count is `nexus:hot:{<key>}`, and ends with the key. `NEXUS
HOTKEYS [count]` lists the most read of all workers; reads there are halved with every window.

| setting | type | default | what |
|---|---|---|---|
"""


def render() -> str:
    """The whole page as Markdown."""
    rows = "".join(setting_rows(PolicyFile))
    known = roles()
    names = {role: [n for n, r in sorted(known.items()) if r is role] for role in Role}
    return (
        f"{_INTRODUCTION}{rows}\n## Commands that `match` may name\n\n"
        f"Pure reads of one key: {', '.join(names[Role.READ])}.\n\n"
        f"Writes (only `tags` have a meaning): {', '.join(names[Role.WRITE])}.\n"
    )
