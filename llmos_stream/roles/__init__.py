"""The roles: one loop each, composed from the rooms below."""

from llmos_stream.roles.aggregator import Initial, initial_of, run_aggregator
from llmos_stream.roles.client import Client, Published, wait_for_topics
from llmos_stream.roles.client_loop import client_id_of, run_client, state_folder
from llmos_stream.roles.client_state import ClientState
from llmos_stream.roles.control import ControlView, Pointer, Promotion, RunEnd
from llmos_stream.roles.evaluator import Evaluation, Judge, evaluate_once, run_evaluator
from llmos_stream.roles.local_model import LocalModel
from llmos_stream.roles.log import LoggedVersion, read_versions
from llmos_stream.roles.monitor import follow_events
from llmos_stream.roles.pausing import set_paused, updates_kept_hours
from llmos_stream.roles.replica import Follower, Replica, decoded_versions
from llmos_stream.roles.versions import Version, decode_version

__all__ = [
    "Client",
    "ClientState",
    "ControlView",
    "Evaluation",
    "Follower",
    "Initial",
    "Judge",
    "LocalModel",
    "LoggedVersion",
    "Pointer",
    "Promotion",
    "Published",
    "Replica",
    "RunEnd",
    "Version",
    "client_id_of",
    "decode_version",
    "decoded_versions",
    "evaluate_once",
    "follow_events",
    "initial_of",
    "read_versions",
    "run_aggregator",
    "run_client",
    "run_evaluator",
    "set_paused",
    "state_folder",
    "updates_kept_hours",
    "wait_for_topics",
]
