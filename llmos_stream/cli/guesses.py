"""Commands that a person guesses who has used other tools, and what is meant here."""

from collections.abc import Mapping

GUESSES: Mapping[str, str] = {
    **dict.fromkeys(
        ("start", "run", "up"), "`llmos-stream demo` tries a federation here, `llmos-stream aggregator` leads one"
    ),
    **dict.fromkeys(("server", "serve-model", "superlink"), "`llmos-stream aggregator` leads a federation"),
    **dict.fromkeys(("join", "train", "worker", "site", "supernode"), "`llmos-stream client` trains and sends updates"),
    **dict.fromkeys(
        ("status", "ps", "top"),
        "`llmos-stream monitor` shows what happens, `llmos-stream versions list` what there is",
    ),
    **dict.fromkeys(
        ("ls", "list", "show"), "`llmos-stream versions list` lists versions, `llmos-stream topics list` topics"
    ),
    **dict.fromkeys(
        ("logs", "log", "history"),
        "`llmos-stream monitor` follows what happens, `llmos-stream report` writes what has happened",
    ),
    **dict.fromkeys(("stop", "end", "down"), "`llmos-stream finish` ends a run, `llmos-stream pause` lets it rest"),
    **dict.fromkeys(("predict", "infer"), "`llmos-stream serve` answers predictions over HTTP"),
    **dict.fromkeys(("config", "options"), "`llmos-stream settings` lists every setting"),
    **dict.fromkeys(
        ("init", "create", "startproject"),
        "`llmos-stream new` makes a project, `llmos-stream topics create` a federation's topics",
    ),
    **dict.fromkeys(("rm", "delete"), "`llmos-stream topics delete` deletes a federation's log"),
    **dict.fromkeys(("download", "pull", "save"), "`llmos-stream versions export` writes a version to a file"),
    **dict.fromkeys(("rollback", "promote"), "`llmos-stream versions promote` and `rollback` say which version serves"),
    **dict.fromkeys(("dashboard", "ui", "web"), "`llmos-stream monitor --dashboard.port 8090` shows the live page"),
    **dict.fromkeys(("kafka",), "`llmos-stream broker` runs a Kafka here"),
    **dict.fromkeys(("doc", "man", "tutorial"), "`llmos-stream docs` lists the pages of the documentation"),
}


def without_words_of_other_tools(words: list[str]) -> list[str]:
    """`help`, `help COMMAND` and `version` as flags, which they are here."""
    if words[:1] == ["help"]:
        return [*words[1:], "--help"]
    return ["--version"] if words == ["version"] else words
