//! `make demo`: a network for virtual machines from nothing to a published port, in namespaces of its own.
//!
//! ```text
//!   internet                         host                       guests (QEMU)
//!   www.example.org 203.0.113.80     netd, vnet                 web   db
//!   its name server, 198.51.100.1 -- 198.51.100.2 | virbr0 ------+-----+
//! ```
//! Everything shown is run: each command with its output, on the real programs. The machine's own network is not
//! touched (`inside` says how), and nothing is left when the demo ends, however it ends.

mod console;
mod inside;
mod stage;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::Value;
use tests::world::{HOST, WWW};
use tests::{Guest, Netd, Ns, World, wait_for};

use stage::Stage;

fn main() -> ExitCode {
    let stage = Stage::new();
    let played = inside::enter().and_then(|within| {
        if within {
            play(&stage).map(|()| 0)
        } else {
            inside::again()
        }
    });
    match played {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            stage.failed(&error);
            ExitCode::FAILURE
        }
    }
}

fn play(stage: &Stage) -> anyhow::Result<()> {
    let begun = Instant::now();
    stage.say("A host, an internet, and two virtual machines, all inside namespaces: your network is not touched.");
    stage.say("Lines with $ are commands on the host, the rest is what they print.");

    stage.scene("A host on the internet");
    let world = World::new()?;
    stage.ns("host", &world.host, &["ip", "-brief", "address"])?;
    stage.ns(
        "host",
        &world.host,
        &["curl", "-s", &format!("http://{WWW}/")],
    )?;

    stage.scene("netd starts");
    let mut netd = Netd::start(&world.host)?;
    stage.vnet(&netd, &["network", "list"])?;

    stage.scene("Two plugs for two machines: address and name are known before they boot");
    stage.vnet(&netd, &["port", "attach", "default", "web"])?;
    stage.vnet(&netd, &["port", "attach", "default", "db"])?;

    stage.scene("Two Linux guests boot on them");
    let web = boot(&world.host, &netd, "web")?;
    let db = boot(&world.host, &netd, "db")?;
    stage.say("  (qemu-system-x86_64 with the arguments above, a Debian kernel and busybox)");
    let (first, second) = (web.ready()?, db.ready()?);
    stage.say(&format!(
        "  up after {:.1} s and {:.1} s",
        first.as_secs_f32(),
        second.as_secs_f32()
    ));
    web.lease()?;
    db.lease()?;
    stage.guest(
        &web,
        "ip -4 -o addr show dev eth0 | cut -d' ' -f2-7; cat /etc/resolv.conf",
    )?;
    stage.vnet(&netd, &["lease", "list"])?;

    stage.scene("They know each other by name");
    stage.guest(&db, "ping -c 2 web")?;

    stage.scene("... and the world outside, through NAT: the server sees the host's address");
    stage.guest(&db, "nslookup -type=a www.example.org | tail -n +4")?;
    stage.guest(&db, "wget -q -O - http://www.example.org/")?;

    stage.scene("The world may reach what is published, and nothing else");
    stage.guest(
        &web,
        "mkdir /www; echo 'hello from the guest web' >/www/index.html; httpd -h /www",
    )?;
    stage.vnet(&netd, &["publish", "default", "web", "8080:80/tcp"])?;
    stage.ns(
        "internet",
        &world.internet,
        &["curl", "-s", &format!("http://{HOST}:8080/")],
    )?;
    stage.guest(&db, &format!("wget -q -O - http://{HOST}:8080/"))?;

    stage.scene("netd is killed; the guests do not notice");
    survive(stage, &mut netd, &db)?;

    stage.scene("The end");
    stage.vnet(&netd, &["status"])?;
    stage.say(&format!(
        "All of it took {:.0} s.",
        begun.elapsed().as_secs_f32()
    ));
    if std::env::var("KEEP").is_ok_and(|keep| !keep.is_empty() && keep != "0") {
        stage.say("You are on the console of `db` now. Try: ping web; wget -q -O - http://www.example.org/. Ctrl-] ends it all.");
        return console::talk(&db);
    }
    stage.say("Nothing is left. `make demo KEEP=1` ends in a guest's console; `make run` starts netd on this machine.");
    Ok(())
}

fn boot(host: &Ns, netd: &Netd, name: &str) -> anyhow::Result<Guest> {
    let port = netd.json(&["port", "show", "default", name])?;
    let text = |key: &str| {
        port[key]
            .as_str()
            .map(str::to_owned)
            .with_context(|| format!("the port has no {key}"))
    };
    Guest::on_tap(host, &text("interface")?)
        .mac(&text("mac")?)
        .name(name)
        .boot()
}

/// Pings while netd is killed and comes back: every packet must be answered.
fn survive(stage: &Stage, netd: &mut Netd, db: &Guest) -> anyhow::Result<()> {
    // The first answer is waited for: netd, who is about to die, is also who knows the name.
    db.run(
        "ping -i 0.2 web >/tmp/pings 2>&1 & echo $! >/tmp/pinger; \
         for i in $(seq 50); do grep -q seq= /tmp/pings && break; sleep 0.1; done",
    )?;
    let before = netd.id().context("netd runs")?;
    stage.say(&format!("$ kill -9 {before}"));
    netd.kill9()?;
    stage.guest(db, &format!("sleep 1; wget -q -O - http://{WWW}/"))?;
    stage.say("$ netd &");
    netd.start_again()?;
    wait_for(
        "the networks to be adopted",
        Duration::from_secs(10),
        || -> anyhow::Result<()> {
            let networks = netd.json(&["network", "list"])?;
            let running = networks
                .as_array()
                .is_some_and(|all| all.iter().any(|n| n["running"] == Value::Bool(true)));
            anyhow::ensure!(running, "{networks}");
            Ok(())
        },
    )?;
    stage.vnet(netd, &["port", "list"])?;
    stage.guest(
        db,
        "kill -INT $(cat /tmp/pinger); sleep 1; tail -n 2 /tmp/pings",
    )
}
