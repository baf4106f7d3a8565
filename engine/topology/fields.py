"""The keys of topology.yaml: one table from which reader, JSON schema and reference are derived.

Job: say of each key its name, shape, bounds, default, meaning and why the default is what it is.
Does not know: YAML, files, or rules that join several keys (those are in `topology_rules`).
Invariants: defaults are written as a user would write them and pass through the same checks; a
section's names are those of its record in `topology`.
"""

from .sandbox_fields import SANDBOXES
from .seeing_fields import METRICS, TRACES
from .shapes import (
    Bytes,
    Choice,
    Derived,
    Field,
    Flag,
    Integer,
    Many,
    Named,
    One,
    Options,
    Seconds,
    Section,
    Text,
    Workers,
)

_DAY_S = 86_400.0
_NAME = Text(
    r"[a-z][a-z0-9_-]{0,23}", "a name of 1 to 24 characters: a-z first, then a-z, 0-9, _ and -"
)
_HOST_NAME = Text(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", "the name of a host")
_PATH = Text(r"[^~\x00-\x1f\x7f][^\x00-\x1f\x7f]*", "a path that does not begin with ~")
_PORT_WHY = "Free of well-known services, below the range that systems hand out to clients."
_BROKER_HOST = Derived("the broker's host")

HOST = Section(
    "hosts",
    "One machine, under the name that the other sections use.",
    (
        Field(
            "address",
            Text(r"[A-Za-z0-9._:-]{1,253}", "an IP address or a host name"),
            "Its address for TCP. Given for every host or for none.",
            None,
            "Without addresses everything runs on this machine over IPC, which needs no keys.",
        ),
        Field(
            "memory_bytes",
            Bytes(2**20),
            "What rollmq may hold here in message bodies: checked against the broker and workers.",
            None,
            "Unknown until you say it; then the sum is checked before anything starts.",
        ),
    ),
)

BROKER = Section(
    "broker",
    "The process that accepts, dispatches and delivers rollouts.",
    (
        Field(
            "host",
            _HOST_NAME,
            "The host that it runs on.",
            Derived("the first host"),
        ),
        Field(
            "port",
            Integer(1024, 65_532),
            "Over TCP, the first of four ports in a row: front, control, results, events.",
            5570,
            _PORT_WHY,
        ),
    ),
)

LIMITS = Section(
    "limits",
    "The bounds of the broker and its sockets.",
    (
        Field(
            "rollouts",
            Integer(1, 10_000_000),
            "Rollouts accepted and not yet acknowledged by their trainer.",
            100_000,
            "Many batches ahead of any trainer, and still a small ledger.",
        ),
        Field(
            "bytes",
            Bytes(2**20),
            "Message bodies held for those rollouts, on disk and in memory together.",
            "16GiB",
            "Room for 100,000 rollouts of 160 KiB; fits on any local disk.",
        ),
        Field(
            "memory_bytes",
            Bytes(2**20),
            "Message bodies that the broker keeps in memory; the rest waits on disk.",
            "512MiB",
            "The hot end of the queue, small beside the memory of a machine that hosts a trainer.",
        ),
        Field(
            "message_bytes",
            Bytes(2**18, 2**31 - 1),
            "The largest message that any socket accepts.",
            "64MiB",
            "A trajectory of a million tokens takes 9 MB; this leaves room for artifacts.",
        ),
        Field(
            "group",
            Integer(1, 1_000_000),
            "The largest group of rollouts of one task.",
            1024,
            "Beyond the group sizes in use (8 to 64), below what would starve other clients.",
        ),
        Field(
            "queue_messages",
            Integer(1, 1_000_000),
            "The high-water mark of every socket, in messages.",
            1000,
            "ZeroMQ's own default; credit keeps the pipes far below it.",
        ),
        Field(
            "client_window",
            Integer(1, 1_000_000),
            "Results delivered to a client and not yet acknowledged.",
            256,
            "Keeps a link busy, and bounds what a trainer that reconnects receives again.",
        ),
        Field(
            "client_bytes",
            Bytes(2**20),
            "The same in bytes: what a trainer that does not read can hold in memory.",
            "256MiB",
            "3,500 trajectories of 8,192 tokens; one result is delivered whatever its size.",
        ),
        Field(
            "retention_s",
            Seconds(0.0, 30 * _DAY_S),
            "How long an acknowledged result stays known, so that a repeated submit is answered.",
            3600,
            "Outlives a trainer's restart; keeps the disk bounded over weeks.",
        ),
    ),
)

TIMEOUTS = Section(
    "timeouts",
    "How long one side waits for another.",
    (
        Field(
            "heartbeat_s",
            Seconds(0.05, 600.0),
            "Time between two heartbeats of a worker, each of which renews its leases.",
            2,
            "Costs nothing, and finds a dead worker within seconds.",
        ),
        Field(
            "lease_s",
            Seconds(0.15, 3600.0),
            "How long a lease lasts without a heartbeat; at least three heartbeats.",
            Derived("three heartbeats"),
            "Two heartbeats may be lost or late before work is repeated.",
        ),
        Field(
            "drain_s",
            Seconds(0.0, _DAY_S),
            "How long a node that is asked to stop may go on with what it has.",
            10,
            "Lets results leave; what is longer is retried elsewhere from its last stage.",
        ),
        Field(
            "cancel_grace_s",
            Seconds(0.0, 3600.0),
            "How long cancelled code may clean up before it is ended.",
            2,
            "A sandbox stops well within it; capacity must come back quickly.",
        ),
        Field(
            "connect_s",
            Seconds(0.1, 3600.0),
            "How long a client waits for the broker before it raises.",
            10,
            "Longer than a broker's restart, shorter than a person's patience.",
        ),
        Field(
            "start_s",
            Seconds(0.1, _DAY_S),
            "How long a node may take from its start to its first hello.",
            60,
            "Imports from a slow network file system take tens of seconds.",
        ),
        Field(
            "retry_delay_s",
            Seconds(0.0, 3600.0),
            "The delay before the first retry of a stage; it doubles with each attempt.",
            0.5,
            "Long enough for a passing fault to pass, too short to idle a slot.",
        ),
    ),
)

STAGE = Section(
    "stages",
    "A step of the pipeline; rollouts go through the stages in the order of the list.",
    (
        Field(
            "name",
            _NAME,
            "Its name, which its workers carry too: `run-0`, or `run-0.b` on a host b.",
        ),
        Field(
            "workers",
            Workers(Integer(1, 4096)),
            "Worker processes: a number for every host, or a mapping of hosts to numbers.",
            1,
            "A worker runs many rollouts at once; more of them pay once it fills a core.",
        ),
        Field(
            "slots",
            Integer(1, 65_536),
            "Rollouts that one worker runs at once.",
            64,
            "Rollouts mostly wait for tokens and tools, so one event loop serves many.",
        ),
        Field(
            "memory_bytes",
            Bytes(2**10),
            "Message bodies that one worker has in work: its credit in bytes.",
            "256MiB",
            "64 slots of 4 MiB; at least one message of the largest size.",
        ),
        Field(
            "timeout_s",
            Seconds(0.1, 30 * _DAY_S),
            "How long one attempt of this stage may take.",
            600,
            "Covers agents of many turns; raise it for test suites that take longer.",
        ),
        Field(
            "attempts",
            Integer(1, 1000),
            "Attempts before the rollout ends as failed.",
            3,
            "Survives two lost workers, and stops a rollout that kills its worker.",
        ),
        Field(
            "ready",
            Integer(1, 10_000_000),
            "Rollouts that may wait for this stage on one host; more are not admitted to the "
            "stage before.",
            Derived(
                "the slots of this stage's workers on its largest host, or of the stage's before "
                "it if those are more"
            ),
            "Every slot of the stage before can be used, one full set waits while one runs, and no "
            "sandbox ages.",
        ),
        Field(
            "handler",
            Text(
                r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*",
                "package.module:function",
            ),
            "The function that does this stage, in place of the task kind's own.",
            None,
            "Each task kind brings its own functions for its stages.",
        ),
    ),
)

ROUTER = Section(
    "router",
    "The process that spreads generation over the inference backends.",
    (
        Field(
            "host",
            _HOST_NAME,
            "The host that it runs on.",
            _BROKER_HOST,
        ),
        Field(
            "port",
            Integer(1024, 65_534),
            "Over TCP, the first of two ports in a row: for run workers, for backends.",
            5580,
            _PORT_WHY,
        ),
        Field(
            "policy",
            Choice(("sticky-least-loaded", "round-robin", "random", "least-loaded")),
            "How a turn finds its backend.",
            "sticky-least-loaded",
            "A session that stays on one backend finds its prefix in that backend's cache.",
        ),
        Field(
            "idle_s",
            Seconds(1.0, _DAY_S),
            "A session without a turn for so long is released.",
            600,
            "Longer than a tool call may take; gives back what a lost worker has left open.",
        ),
        Field(
            "queue",
            Integer(1, 1_000_000),
            "Turns that wait for room on a backend; past it a turn is refused and tried again.",
            4096,
            "64 workers of 64 slots, each with one turn waiting.",
        ),
        Field(
            "sessions",
            Integer(0, 1_000_000),
            "Open sessions for each backend; past it new ones wait until one ends. 0: no bound.",
            0,
            "What fits depends on the backends' caches: cache tokens over a session's mean length.",
        ),
        Field(
            "share_prefix_across_versions",
            Flag(),
            "Let a session use what a backend's prefix cache holds of older weights.",
            default=False,
            why="Keys and values of other weights are not those of the policy that samples.",
        ),
    ),
)

BACKEND = Section(
    "backends",
    "Inference servers of one kind that the router uses.",
    (
        Field(
            "name",
            _NAME,
            "Its name, which its processes carry too: `sim-0`, `sim-1`.",
        ),
        Field(
            "kind",
            Choice(("simulator", "vllm")),
            "What it is: `simulator` needs no GPU and no model, `vllm` serves one.",
        ),
        Field(
            "host",
            _HOST_NAME,
            "The host that its processes run on.",
            _BROKER_HOST,
        ),
        Field(
            "count",
            Integer(1, 4096),
            "Processes of it.",
            1,
            "One server usually takes all the GPUs that it is given.",
        ),
        Field(
            "capacity",
            Integer(1, 65_536),
            "Open sessions of each process; the router fills backends in proportion to it.",
            64,
            "The slots of one run worker.",
        ),
        Field(
            "options",
            Options(),
            "Given to the backend as they are; the engine does not read them.",
            {},
            "Each kind of backend runs without any.",
        ),
    ),
)

TOPOLOGY = Section(
    "topology",
    "The whole file.",
    (
        Field("version", Integer(1, 1), "The version of this format."),
        Field(
            "name",
            Text(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "a name of letters, digits, `.`, `_` and `-`"),
            "What this run is called in logs and pictures.",
            "rollmq",
            "One topology a machine is the common case.",
        ),
        Field(
            "beside",
            _PATH,
            "Directory that relative paths in this file are relative to.",
            ".",
            "The directory of this file: it moves together with what it names.",
        ),
        Field(
            "run_dir",
            _PATH,
            "Directory of sockets, journal and logs, relative to this file; on a local disk.",
            "run",
            "Beside the file that describes it.",
        ),
        Field(
            "durability",
            Choice(("none", "process", "power")),
            "What accepted work survives: nothing, the death of processes, or the loss of power.",
            "power",
            "Rollouts cost far more than the few milliseconds of an fsync shared by many.",
        ),
        Field(
            "insecure",
            Flag(),
            "Allow TCP without `keys`, on loopback addresses only.",
            default=False,
            why="Plain TCP has to be asked for.",
        ),
        Field(
            "keys",
            _PATH,
            "Directory of the keys made by `rollmq keys`, relative to this file: all TCP is CURVE.",
            None,
            "IPC needs none, and plain TCP stays on this machine.",
        ),
        Field(
            "log_level",
            Choice(("debug", "info", "warning", "error")),
            "The least severe event that is logged.",
            "info",
            "One line for each event of a process's life; debug has one for each message.",
        ),
        Field(
            "hosts",
            Named(HOST, _HOST_NAME),
            "The machines by name.",
            {"local": {}},
            "This machine, over IPC.",
        ),
        Field("broker", One(BROKER), "The broker.", {}, "Its keys have defaults."),
        Field("limits", One(LIMITS), "Bounds.", {}, "Its keys have defaults."),
        Field("timeouts", One(TIMEOUTS), "Waiting times.", {}, "Its keys have defaults."),
        Field("stages", Many(STAGE, 1), "The pipeline, in order."),
        Field(
            "router",
            One(ROUTER),
            "The inference router. `{}` is one with every default.",
            None,
            "A pipeline that generates nothing needs none.",
        ),
        Field(
            "backends",
            Many(BACKEND, 0),
            "The inference backends to start.",
            (),
            "Backends may also be added while the router runs.",
        ),
        Field(
            "filters",
            Options(),
            "Filters of groups for dynamic sampling, by name: `package.module:function`.",
            {},
            "`dapo`, `all` and `reward-bounds` are there without it.",
        ),
        Field(
            "sandboxes",
            One(SANDBOXES),
            "Sandboxes. `{}` is with every default.",
            None,
            "Tasks that run nothing need none.",
        ),
        Field(
            "metrics",
            One(METRICS),
            "Figures for Prometheus. `{}` is with every default.",
            None,
            "`rollmq top` needs none.",
        ),
        Field(
            "traces",
            One(TRACES),
            "Spans for OpenTelemetry.",
            None,
            "There is no collector that could be assumed.",
        ),
    ),
)

SECTIONS = (
    TOPOLOGY,
    HOST,
    BROKER,
    LIMITS,
    TIMEOUTS,
    STAGE,
    ROUTER,
    BACKEND,
    SANDBOXES,
    METRICS,
    TRACES,
)
