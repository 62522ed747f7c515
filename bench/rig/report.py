"""Tables and verdicts from what was measured."""

import statistics

from .scenarios import LIMITS, SCENARIOS


def median(values):
    values = [value for value in values if value is not None]
    return statistics.median(values) if values else None


def figure(sample, name, direct=None):
    """One figure of one measured round; None where there is none."""
    client = sample["client"]
    if name == "cost":
        return sum(sample["cost_ms"].values()) if sample["cost_ms"] else None
    if name == "user":
        user, system = sum(sample["user_s"].values()), sum(sample["system_s"].values())
        if not sample["cost_ms"]:
            return None
        return sum(sample["cost_ms"].values()) * user / (user + system) if user + system else None
    if name == "speed":
        return (client["bytes"] * 8 / 1e9 if client["bytes"] else client["ok"]) / client["seconds"]
    if name in ("p50", "p99", "p999"):
        return client["latency_us"][name]
    if name.startswith("added "):
        percentile = name.split()[1]
        return client["latency_us"][percentile] - direct["client"]["latency_us"][percentile] if direct else None
    if name == "resident MiB":
        return max(sample["resident_mib"].values(), default=None)
    if name == "KiB per connection":
        return max(sample["grown_kib"].values(), default=None)
    raise KeyError(name)


class Results:
    def __init__(self, data):
        self.samples, self.start = data["samples"], data["start"]
        self.errors = sum(sample["client"]["errors"] for sample in self.samples)

    def rounds(self, scenario, peer, name):
        chosen = [sample for sample in self.samples if (sample["scenario"], sample["peer"]) == (scenario, peer)]
        direct = {sample["round"]: sample for sample in self.samples if (sample["scenario"], sample["peer"]) == (scenario, "direct")}
        return {sample["round"]: figure(sample, name, direct.get(sample["round"])) for sample in chosen}

    def value(self, scenario, peer, name):
        return median(self.rounds(scenario, peer, name).values())

    def ratio(self, scenario, peer, of, name):
        own, other = self.rounds(scenario, peer, name), self.rounds(scenario, of, name)
        return median(own[at] / other[at] for at in own if own[at] is not None and other.get(at))

    def reached(self, limit):
        """(the figure, whether it is reached); None where it was not measured."""
        if limit.scenario == "start":
            found = self.start.get("mesh", {}).get(limit.figure)
        elif limit.of is None:
            found = self.value(limit.scenario, "mesh", limit.figure)
        else:
            found = self.ratio(limit.scenario, "mesh", limit.of, limit.figure)
        if found is None:
            return None, None
        return found, found >= limit.bound if limit.at_least else found <= limit.bound


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def text(value, digits=1):
    return "–" if value is None else f"{value:,.{digits}f}"


def tables(data):
    results, out = Results(data), []
    for name, scenario in SCENARIOS.items():
        peers = list(dict.fromkeys(sample["peer"] for sample in results.samples if sample["scenario"] == name))
        if not peers:
            continue
        rows = []
        unit = "ms/GiB" if name == "bulk" else "ms/1,000"
        for peer in peers:
            value = lambda what: results.value(name, peer, what)
            ratio = lambda of: results.ratio(name, peer, of, "cost") if of in peers and peer != "direct" else None
            own = [sample for sample in results.samples if (sample["scenario"], sample["peer"]) == (name, peer)]
            row = [peer, text(value("cost")), text(value("user")), text(ratio("floor"), 2), text(ratio("envoy"), 2),
                   text(value("speed"), 2 if name == "bulk" else 0)]
            row += [text(value(what), 0) for what in ("p50", "p99", "p999")] if name not in ("bulk", "idle") else ["–"] * 3
            row += [text(value("resident MiB"))]
            row += [text(value("KiB per connection"))] if name == "idle" else []
            rows.append([*row, str(sum(sample["client"]["errors"] for sample in own))])
        head = ["peer", f"CPU of both proxies, {unit}", "of it user", "÷ floor", "÷ Envoy",
                "Gbit/s" if name == "bulk" else "per second", "p50 µs", "p99 µs", "p99.9 µs", "resident MiB"]
        head += ["KiB per connection"] if name == "idle" else []
        out += [f"### {name}: {scenario.what}", "", table([*head, "errors"], rows), ""]
    rows = [[peer, text(start["resident MiB"]), text(start.get("ready ms"), 0)] for peer, start in results.start.items()]
    out += ["### At rest, before the first request", "", table(["peer", "resident MiB", "ready ms"], rows), ""]
    return "\n".join(out)


def verdicts(data):
    """The table of limits, and how many of those measured are missed."""
    results, rows, missed = Results(data), [], 0
    for limit in LIMITS:
        found, good = results.reached(limit)
        if found is not None:
            missed += not good
            rows.append([limit.says(), text(found, 2), "reached" if good else "MISSED"])
    rows.append(["no request fails", str(results.errors), "reached" if results.errors == 0 else "MISSED"])
    return table(["figure of the mesh", "measured", ""], rows), missed + (results.errors > 0)
