//! One run of perfdhcp, and what it said.

use std::fmt;

use anyhow::{Context as _, ensure};

use crate::generator;
use crate::peer::{Lab, SERVER};

/// Seconds of load.
const SECONDS: u32 = 5;

/// What one run showed.
#[derive(Debug)]
pub(crate) struct Run {
    sent: f64,
    /// Whole exchanges a second.
    pub(crate) answered: f64,
    drops: f64,
    /// What perfdhcp's own receive buffer lost.
    own: u64,
    /// Only if asked for.
    pub(crate) times: Option<Times>,
}

/// How long clients waited for one kind of answer, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wait {
    pub(crate) average: f64,
    pub(crate) p99: f64,
}

/// From the DISCOVER to the OFFER, and from the REQUEST to the ACK.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) offer: Wait,
    pub(crate) ack: Wait,
}

impl Times {
    /// Of both together, as a client that wants an address waits for both.
    pub(crate) fn whole(self) -> Wait {
        Wait {
            average: self.offer.average + self.ack.average,
            p99: self.offer.p99 + self.ack.p99,
        }
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let p99 = self.whole().p99;
        let (offer, ack) = (self.offer.average, self.ack.average);
        write!(f, "{offer:.2} + {ack:.2}, p99 {p99:.2} ms")
    }
}

impl Run {
    /// The share that stayed unanswered.
    pub(crate) fn lost(&self) -> f64 {
        self.drops / self.sent.max(1.0)
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lost = 100.0 * self.lost();
        write!(f, "{:.0}/s, {lost:.2} % ({})", self.answered, self.own)
    }
}

/// Offers a rate for five seconds, then waits half a second for what is on its way.
pub(crate) fn measure(lab: &Lab, rate: u32, timed: bool) -> anyhow::Result<Run> {
    let before = own_drops(lab)?;
    let times = if timed { "-x t" } else { "" };
    let arguments =
        format!("-4 -g single -r {rate} -R 60000 -p {SECONDS} -W 500000 {times} {SERVER}");
    let said = generator::run(&lab.clients, &arguments)?.ok()?;
    let numbers = |key: &str| -> Vec<f64> {
        let lines = said.lines().filter_map(|l| l.strip_prefix(key));
        lines
            .filter_map(|rest| rest.split_whitespace().next()?.parse().ok())
            .collect()
    };
    let (sent, received, drops) = (
        numbers("sent packets:"),
        numbers("received packets:"),
        numbers("drops:"),
    );
    ensure!(
        sent.len() == 2 && received.len() == 2 && drops.len() == 2,
        "{said}"
    );
    Ok(Run {
        sent: sent[0],
        answered: received[1] / f64::from(SECONDS),
        drops: drops[0] + drops[1],
        own: own_drops(lab)? - before,
        times: timed.then(|| times_of(&said)).transpose()?,
    })
}

/// UDP datagrams that the clients' namespace dropped because a socket's buffer was full.
fn own_drops(lab: &Lab) -> anyhow::Result<u64> {
    let said = lab.clients.sh("cat /proc/net/snmp")?;
    let mut udp = said.lines().filter_map(|l| l.strip_prefix("Udp: "));
    let (names, values) = (
        udp.next().context("no counters")?,
        udp.next().context("none")?,
    );
    let at = names.split(' ').position(|n| n == "RcvbufErrors");
    let value = values.split(' ').nth(at.context("no RcvbufErrors")?);
    Ok(value.context("no value")?.parse()?)
}

/// From the lines `sent / received: 000000.000086 / 000000.000284`, first of all OFFERs, then of all ACKs.
fn times_of(said: &str) -> anyhow::Result<Times> {
    let mut waits = said.split("***Timestamps for packets:").skip(1).map(wait);
    let mut next = || waits.next().context("no times")?;
    Ok(Times {
        offer: next()?,
        ack: next()?,
    })
}

fn wait(part: &str) -> anyhow::Result<Wait> {
    let times = part.lines().filter_map(|line| {
        let (sent, received) = line.strip_prefix("sent / received: ")?.split_once(" / ")?;
        Some((received.parse::<f64>().ok()? - sent.parse::<f64>().ok()?) * 1e3)
    });
    let mut times: Vec<f64> = times.collect();
    ensure!(!times.is_empty(), "no times");
    times.sort_by(f64::total_cmp);
    Ok(Wait {
        average: times.iter().sum::<f64>() / f64::from(u32::try_from(times.len())?),
        p99: times[times.len() * 99 / 100],
    })
}
