"""What an aggregator looks at before it begins: whether its versions can be written, kept and read."""

from collections.abc import Mapping

from llmos_stream.codec import Layout, delta_codec, max_payload_size
from llmos_stream.config import ServerOptimizerSettings, Settings
from llmos_stream.core import Rule
from llmos_stream.errors import ConfigError
from llmos_stream.log.versions import FULL_CODEC, build, fragments_of, local_rule
from llmos_stream.storage.spool import room_in
from llmos_stream.types import Contribution, VersionHead, VersionKind
from llmos_stream.wire import pack_prelude


def check_fits(layout: Layout, settings: Settings) -> None:
    """Raise ConfigError when versions of this layout could not be written, not be kept, or not be read by anyone."""
    rule = local_rule(settings)
    _check_optimizer(rule)
    _check_fragments(layout, settings)
    widest = Contribution("c" * 128, 2**63 - 1, 2**31 - 1, 2**63 - 1, 2**63 - 1, 2**31 - 1, 1.0, 1.0, bytes(32), 1.0)
    head = VersionHead(
        number=2**63 - 1,
        parent=2**63 - 2,
        kind=VersionKind.FULL,
        layout_digest=layout.digest,
        codec=FULL_CODEC,
        payload_size=max_payload_size(FULL_CODEC, layout.numel),
        payload_digest=bytes(32),
        weights_digest=bytes(32),
        time_ms=0,
        manifest=(widest,) * rule.capacity,
        tensors=layout.tensors,
        tied=layout.tied,
        rule=rule.record(),
        build=build(),
    )
    try:
        size = len(pack_prelude(head)) + head.payload_size
    except ValueError as error:
        raise ConfigError(
            f"task.share, aggregation.buffer_size: a version's head has no room for {len(layout.tensors)} tensors and "
            f"{rule.capacity} contributions ({error}); share fewer or make the buffer smaller"
        ) from None
    delta = max_payload_size(delta_codec(settings.versions), layout.parameters, layout.buffer_elements)
    # A full version and the deltas on it are needed until the next full one is committed, in two attempts perhaps.
    chain = 3 * size + (settings.versions.full_every - 1) * (size - head.payload_size + delta)
    snapshots = 3 * (len(rule.moments) * max_payload_size(FULL_CODEC, layout.parameters) + delta)
    topics = settings.topics
    for name, gib, needed, what in (
        ("models", topics.models_retention_gib, chain, "full versions and the deltas between"),
        ("snapshots", topics.snapshots_retention_gib, snapshots, "what versions need to be gone on from"),
    ):
        if needed > gib * (1 << 30):
            raise ConfigError(
                f"topics.{name}_retention_gib: {gib:g} GiB do not hold {what} ({needed / (1 << 30):.2f} GiB); raise it"
                + (" or lower versions.full_every" if name == "models" and settings.versions.full_every > 1 else "")
            )
    room = room_in(settings.wire.spool_dir)
    if settings.wire.memory_bytes < size and 2 * size > room:
        raise ConfigError(
            f"wire.spool_dir: {room >> 20} MiB are free there, and versions of {size >> 20} MiB pass through it; "
            "make room or name another folder"
        )
    if size > settings.wire.pending_bytes:
        raise ConfigError(
            f"wire.pending_bytes: {settings.wire.pending_bytes} is less than a version takes ({size} bytes); "
            "raise it for every role"
        )


def check_cut(recorded: Mapping[str, object], settings: Settings, federation: str) -> None:
    """Raise ConfigError where the versions of a federation, by their rule, are cut otherwise than the settings say.

    Clients cut their updates as the newest version says: nobody would send what could be folded.
    """
    count = fragments_of(recorded)
    if count != settings.aggregation.fragments:
        raise ConfigError(
            f"aggregation.fragments: {settings.aggregation.fragments} are wanted, and the versions of federation "
            f"{federation} move by {count}; leave it so, or begin a federation of another name (federation.name)"
        )


def _check_fragments(layout: Layout, settings: Settings) -> None:
    count = settings.aggregation.fragments
    try:
        layout.fragments(count)
    except ValueError as error:
        raise ConfigError(f"aggregation.fragments: {error}; ask for fewer") from None
    if count > 1 and settings.guard.on_collapse == "rollback":
        raise ConfigError(
            "guard.on_collapse: a version that goes back moves the whole model, and updates of its fragments may "
            "always wait; set it to none or pause, or aggregation.fragments to 1"
        )


def _check_optimizer(rule: Rule) -> None:
    if not rule.strategy().uses_server_optimizer and rule.server_optimizer != ServerOptimizerSettings():
        raise ConfigError("server_optimizer: the strategy takes no server optimiser; leave it out")
