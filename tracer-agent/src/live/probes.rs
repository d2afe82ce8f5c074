//! Which probes there are, what each is for, and the ways to see bytes that they make up.

use std::fmt;

use tracer_common::config::condition;

/// How bytes are seen, the best way first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Capture {
    /// Tracepoints in the socket calls alone: other calls cost nothing (Linux 6.3)
    #[value(name = "sock_length", alias = "sock-length", alias = "sock")]
    SockLength,
    /// A typed tracepoint at the end of every system call
    #[value(name = "sys_exit", alias = "sys-exit", alias = "tp_btf")]
    SysExit,
    /// The same without types, and so all other probes
    #[value(name = "raw_sys_exit", alias = "raw-sys-exit", alias = "raw_tp")]
    RawSysExit,
}

impl Capture {
    pub const ALL: [Capture; 3] = [Capture::SockLength, Capture::SysExit, Capture::RawSysExit];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Capture::SockLength => "sock_length",
            Capture::SysExit => "sys_exit",
            Capture::RawSysExit => "raw_sys_exit",
        }
    }

    /// For people.
    pub fn told(self) -> &'static str {
        match self {
            Capture::SockLength => "tp_btf sock_send_length and sock_recv_length",
            Capture::SysExit => "tp_btf sys_exit",
            Capture::RawSysExit => "raw_tp sys_exit",
        }
    }

    /// What it lacks that the best way has.
    pub fn lacks(self) -> Option<&'static str> {
        match self {
            Capture::SockLength => None,
            Capture::SysExit | Capture::RawSysExit => Some(
                "every system call of the machine costs some nanoseconds more; what io_uring moves is not counted; a \
                 file number that another thread closes or gives away during a call can hide its bytes",
            ),
        }
    }

    /// Tracepoints that tell of bytes: without one of them there is no capture.
    pub fn tracepoints(self) -> &'static [&'static str] {
        match self {
            Capture::SockLength => &["sock_send_length", "sock_recv_length"],
            Capture::SysExit | Capture::RawSysExit => &["sys_exit"],
        }
    }

    pub fn is_raw(self) -> bool {
        self == Capture::RawSysExit
    }

    /// Whether the probes can leave out connections, and tell what they take.
    pub fn sheds(self) -> bool {
        self == Capture::SockLength
    }

    /// The kernel gives no socket to these, and so no cookie.
    pub fn knows_by_address(self) -> bool {
        self != Capture::SockLength
    }
}

impl fmt::Display for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A probe that the rest runs without.
#[derive(Clone, Copy, Debug)]
pub struct Follower {
    pub tracepoint: &'static str,
    /// What is not known without it.
    pub without: &'static str,
    /// The kind of condition that asks for it, if it is not always there.
    pub only_for: Option<usize>,
}

/// In the order in which they are attached.
pub const FOLLOWERS: [Follower; 8] = [
    Follower {
        tracepoint: "tcp_destroy_sock",
        without: "connections are not seen to end: what is open then is told at the end",
        only_for: None,
    },
    Follower {
        tracepoint: "tcp_receive_reset",
        without: "a reset by the peer is not told from an orderly end",
        only_for: None,
    },
    Follower {
        tracepoint: "inet_sock_set_state",
        without: "who ended a connection first is not known, processes that begin to listen are not chosen, and \
                  connects are not counted",
        only_for: None,
    },
    Follower {
        tracepoint: "tcp_retransmit_skb",
        without: "what was sent again is known when a connection is over, and not of which request",
        only_for: None,
    },
    Follower {
        tracepoint: "sched_process_exit",
        without: "processes that have ended stay chosen",
        only_for: None,
    },
    Follower {
        tracepoint: "sched_process_fork",
        without: "children of chosen processes are not traced",
        only_for: None,
    },
    Follower {
        tracepoint: "sched_process_exec",
        without: "programs that start later are not chosen by their name or file",
        only_for: None,
    },
    Follower {
        tracepoint: "cgroup_attach_task",
        without: "processes that move into a chosen cgroup are not traced",
        only_for: Some(condition::CGROUP),
    },
];

/// The program for a tracepoint, in the object of the probes.
pub fn program(tracepoint: &str, raw: bool) -> String {
    if raw { format!("raw_{tracepoint}") } else { tracepoint.to_owned() }
}

/// A probe that the kernel did not take.
#[derive(Clone, Debug)]
pub struct Refused {
    pub tracepoint: &'static str,
    pub reason: String,
    /// What it costs; none where another way was found.
    pub without: &'static str,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cost = if self.without.is_empty() { "another way is taken" } else { self.without };
        write!(f, "probe {}: {}; {cost}", self.tracepoint, self.reason)
    }
}
