"""What a run's numbers say in words: one sentence a finding, each with its numbers and its updates.

Whole windows are compared, not end points, and what lasted three updates counts, not what happened once: single updates are
mostly chance. The page's readers of numbers stand here, too. Standard library only.
"""

from itertools import groupby
from math import inf, sqrt
from statistics import fmean, variance


def finite(value) -> "float | None":
    """A float, or None for what a curve must leave a gap for: NaN, infinity, null, text, a size that nothing trained has."""
    if not isinstance(value, (int, float)) or not abs(value) < 1e100:
        return None
    return float(value) if abs(value) > 1e-100 else 0.0


def series(metrics: list, key: str) -> list:
    """[(step, value)] of the finite values under a key."""
    return [(row["step"], value) for row in metrics if (value := finite(row.get(key))) is not None]


def number(value: "float | None", form: str = ".3g") -> str:
    """A number for people: three digits, a real minus sign, an en dash for none."""
    if value is None:
        return "–"
    return f"{value:{',.0f' if 999.5 <= abs(value) < 1e15 else form}}".replace("-", "−")


def settings(config: dict) -> dict:
    """The configuration flattened: the fields of "run" and "ppo" beside the rest."""
    flat = {**config, **config.get("run", {}), **config.get("ppo", {})}
    return {key: value for key, value in flat.items() if key not in ("run", "ppo")}


def kl_target(config: dict) -> "float | None":
    """The KL that the adaptive controller steers to; None where the coefficient is fixed."""
    given = settings(config)
    return finite(given.get("target")) if given.get("adap_kl_ctrl", True) else None


# ---- findings ----

_PERSIST = 3  # updates that a condition must hold in a row before it is worth a sentence


def _span(points: list) -> str:
    first, last = points[0][0], points[-1][0]
    return f"update {first}" if first == last else f"updates {first} to {last}"


def _longest(points: list, alike, least: int = _PERSIST) -> list:
    """The longest stretch of neighbours with one alike(value), and that a true one; [] where it is shorter than `least`."""
    best = max((list(group) for kind, group in groupby(points, lambda at: alike(at[1])) if kind), key=len, default=[])
    return best if len(best) >= least else []


def _window(points: list) -> int:
    """Updates that are averaged at either end: a tenth, five at least; 1 where there is no room for two windows of five."""
    return max(5, len(points) // 10) if len(points) >= 10 else 1


def _ends(points: list) -> tuple:
    """Mean of the first window, of the last, and how far apart chance brings them: two standard errors of the difference."""
    values, k = [value for _, value in points], _window(points)
    if k == 1:
        return 0.0, 0.0, inf  # too short to tell
    early, late = values[:k], values[-k:]
    return fmean(early), fmean(late), 2 * sqrt((variance(early) + variance(late)) / k)


_STRETCHES = (  # key, what is worth a sentence when it persists (target: of the KL), the worst of it, the sentence
    ("objective/kl", lambda v, target: v < -0.1, min,
     "KL negative for {n} updates ({span}, lowest {worst}): do top-k, top-p or a minimum length sample what is not scored?"),
    ("ppo/policy/clipfrac", lambda v, target: v > 0.3, max,
     "Clip fraction above 0.3 for {n} updates ({span}, highest {worst}): lower learning_rate or ppo_epochs."),
    ("samples/distinct", lambda v, target: v < 0.5, min,
     "Fewer than half of the responses differ for {n} updates ({span}, at worst a share of {worst}): collapse, unless few "
     "answers are good."),
    ("tokens/at_limit", lambda v, target: v >= 0.99, min,
     "Every response reaches the length limit in {n} updates ({span}): unless meant, raise max_new_tokens or reward ends."),
    ("objective/kl", lambda v, target: v > 2 * target, max,
     "KL far over its target of {target} for {n} updates ({span}, highest {worst}): raise init_kl_coef, or lower "
     "horizon or learning_rate."),
)


def _score(metrics: list, target: "float | None"):
    """On the score: it is constant, does not rise (updates too small?), or rises while something else is lost."""
    score, clipfrac = series(metrics, "ppo/mean_scores"), series(metrics, "ppo/policy/clipfrac")
    (early, late, chance), k, spread = _ends(score), _window(score), dict(series(metrics, "ppo/std_scores"))
    same = _longest([(step, (value, spread.get(step, 0.0))) for step, value in score],
                    lambda both: both[1] < 1e-6 and (round(both[0], 6),), least=5)
    if same:
        yield f"Score constant at {number(same[0][1][0])} for {len(same)} updates ({_span(same)}): no signal, only KL acts."
    flat = chance < inf and late - early <= chance and not same
    if flat:
        noise = fmean([v for _, v in series(metrics, "ppo/val/var_explained")[-k:]] or [inf])
        yield (f"The score has {'not risen' if late - early >= -chance else 'fallen'}: {number(early)} on average of "
               f"{_span(score[:k])}, {number(late)} of {_span(score[-k:])}; chance alone moves that by {number(chance)}."
               f"{f' To the values it is noise: explained variance {number(noise)}.' if noise < 0.1 else ''} "
               "Read the samples: does the score tell good from bad? Then more updates or a larger batch.")
    rate = "".join(f" {v:g}" for _, v in series(metrics, "ppo/learning_rate")[-1:])
    share, kl = fmean([v for _, v in clipfrac] or [1.0]), _ends(series(metrics, "objective/kl"))[1]
    if len(clipfrac) >= _PERSIST and share == 0:
        yield f"Clip fraction 0 throughout ({_span(clipfrac)}): learning rate{rate} too small? Or one minibatch, one pass?"
    elif flat and share < 0.01 and kl < (target or 1) / 4:
        yield (f"Updates too small ({_span(clipfrac)}): clip fraction {number(share)} on average, KL {number(kl)} at the end"
               f"{f', its target {number(target)}' if target else ''}; raise learning_rate{rate} or ppo_epochs.")
    lost = []
    for key in [*sorted({key for row in metrics for key in row if key.startswith("score/")}), "samples/distinct"]:
        before, after, noise = _ends(series(metrics, key))
        if before - after > max(noise, 0.2 if key == "samples/distinct" else 0):
            lost.append(f"{key} falls from {number(before)} to {number(after)}")
    if lost and late - early > chance:
        yield (f"Score up from {number(early)} to {number(late)} while {' and '.join(lost)} "
               f"({_span(score)}): over-optimisation? Read the samples; raise init_kl_coef or lower target.")


def _others(metrics: list, target: "float | None"):
    """On the rest: what persisted, useless values, lost entropy, skipped minibatches, NaN."""
    for key, holds, worst, text in _STRETCHES:
        if at := _longest(series(metrics, key), lambda v: holds(v, target or inf)):
            yield text.format(n=len(at), span=_span(at), target=number(target), worst=number(worst(v for _, v in at)))
    explained, entropy = series(metrics, "ppo/val/var_explained"), series(metrics, "ppo/policy/entropy")
    late = explained[-max(_PERSIST, len(explained) // 4):]
    if len(explained) > _PERSIST and (mean := fmean(v for _, v in late)) < -0.01:
        yield (f"Explained variance negative late (mean {number(mean)}, {_span(late)}): a constant would predict better. "
               "Either the score is noise to the values, or they lag: raise vf_coef, scale the scores or train longer.")
    start, end, chance = _ends(entropy)
    if start - end > chance and end < 0.25 * start:
        yield (f"Entropy collapsed from {number(start)} to {number(end)} nats per token ({_span(entropy)}): the policy "
               "hardly chooses any more; more KL penalty, an entropy bonus or fewer updates.")
    if skipped := [point for point in series(metrics, "ppo/skipped") if point[1]]:
        yield (f"{sum(v for _, v in skipped):.0f} minibatches skipped in {len(skipped)} of {len(metrics)} updates "
               f"({_span(skipped)}): ratio over ratio_threshold or not finite; lower learning_rate.")
    if bad := [(row["step"], key) for row in metrics for key, value in row.items()
               if finite(value) is None and (value is None or isinstance(value, (int, float)))]:  # NaN is written as null
        yield f"Not a number ({_span(bad)}): {', '.join(sorted({key for _, key in bad}))}."


def findings(metrics: list, config: dict) -> list:
    """One sentence a finding, at least one. metrics: the rows of metrics.jsonl; config: that of config.json."""
    target, k, said = kl_target(config), _window(metrics), ""
    for name, key in (("score", "ppo/mean_scores"), ("KL", "objective/kl")):
        if values := [v for _, v in series(metrics, key)]:
            said += f", {name} {number(fmean(values[:k]))} to {number(fmean(values[-k:]))}"
    means = f" (means of the first and the last {k} updates)" if said and k > 1 else ""
    return [*_score(metrics, target), *_others(metrics, target)] or [
        f"Nothing unusual: {_span([(row['step'],) for row in metrics])}{said}{means}."]
