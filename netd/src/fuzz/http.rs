//! What comes in on `netd.sock`: the router as it is, over a pipe in memory. The driver behind it reads what it is asked,
//! and answers nobody.

use std::cell::RefCell;
use std::future::{IntoFuture, pending};
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::Request;
use axum::extract::connect_info::MockConnectInfo;
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::IntoResponse;
use axum::serve::Listener;
use futures::FutureExt;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::Receiver;
use vnet_core::dns::reverse_name;
use vnet_core::dns::wire::rtype_of;
use vnet_core::model::{Publish, Target};

use crate::api::{Caller, app};
use crate::driver::{Command, Driver, Events, fuzz_wish};
use crate::privilege::Peer;
use crate::wire::{ErrorBody, Event, PublishRequest};

/// Turns of the runtime without a byte, after which nothing more is on its way.
const QUIET: usize = 8;

/// A request: `VERB PATH`, and its body from the second line on. There is an answer, one and whole.
pub(super) fn request(bytes: &[u8]) -> usize {
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let (line, body) = bytes.split_at(end.unwrap_or(bytes.len()));
    let body = body.get(1..).unwrap_or_default();
    let head = format!(
        " HTTP/1.1\r\nhost: netd\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let talk = talk(&[line, head.as_bytes(), body].concat());
    // What hyper takes for the beginning of HTTP/2, behind a line that is no HTTP, is hung up on.
    let preface = body.trim_ascii_start().starts_with(b"PRI * HTTP/2.0");
    let hung_up = talk.answer.is_empty() && preface;
    if !hung_up {
        talk.is_whole(line.starts_with(b"HEAD "));
    }
    talk.commands
}

/// Whatever comes over a connection. If it is answered, then in HTTP.
pub(super) fn connection(bytes: &[u8]) -> usize {
    let talk = talk(bytes);
    let said = &talk.answer;
    assert!(said.is_empty() || said.starts_with(b"HTTP/1."), "{talk:?}");
    talk.commands
}

/// What came of some bytes.
#[derive(Debug)]
struct Talk {
    answer: Vec<u8>,
    /// How many commands came to the driver.
    commands: usize,
    /// The text of what happened in the end.
    event: String,
}

impl Talk {
    /// JSON as long as it says, an event, or nothing but the word that this was no HTTP.
    fn is_whole(&self, without_body: bool) {
        let text = str::from_utf8(&self.answer).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        let head = head.to_ascii_lowercase();
        let field = |name| head.lines().find_map(|line| line.strip_prefix(name));
        let status = field("http/1.1 ").and_then(|line| line.split(' ').next());
        let status: u16 = status.and_then(|code| code.parse().ok()).expect("a status");
        let kind = field("content-type: ");
        if without_body {
            assert!(body.is_empty(), "{text}");
        } else if kind == Some("text/event-stream") {
            let data = body.lines().find_map(|line| line.strip_prefix("data: "));
            let event = data.and_then(|data| serde_json::from_str::<Event>(data).ok());
            assert_eq!(event.expect("an event").text, self.event);
        } else {
            let length = field("content-length: ").and_then(|length| length.parse().ok());
            assert_eq!(length, Some(body.len()), "{text}");
            let whole = match kind {
                Some("application/json") if status < 400 => {
                    serde_json::from_str::<Value>(body).is_ok()
                }
                Some("application/json") => serde_json::from_str::<ErrorBody>(body).is_ok(),
                _ => body.is_empty() && [400, 414, 431].contains(&status),
            };
            assert!(whole, "{text}");
        }
    }
}

/// Made once for all bytes: routes take longer to be made than to answer.
struct Server {
    runtime: Runtime,
    app: Router,
    events: Events,
    commands: Receiver<Command>,
    panicked: Arc<AtomicBool>,
}

thread_local! {
    static SERVER: RefCell<Server> = RefCell::new(Server::new());
}

fn talk(bytes: &[u8]) -> Talk {
    SERVER.with_borrow_mut(|server| server.talk(bytes))
}

impl Server {
    fn new() -> Self {
        let (driver, commands) = Driver::handle(Events::default());
        let events = driver.events.clone();
        let panicked = Arc::new(AtomicBool::new(false));
        let app = watched(app(driver, None), panicked.clone()).layer(MockConnectInfo(us()));
        let runtime = Builder::new_current_thread().enable_time().build();
        Self {
            runtime: runtime.expect("a runtime"),
            app,
            events,
            commands,
            panicked,
        }
    }

    fn talk(&mut self, bytes: &[u8]) -> Talk {
        let (near, far) = duplex(bytes.len().max(1 << 16));
        let event = String::from_utf8_lossy(bytes).into_owned();
        let client = client(near, bytes, &self.events, &event);
        let server = axum::serve(Once(Some(far)), self.app.clone().into_make_service());
        let mut asked = 0;
        let answer = self.runtime.block_on(async {
            tokio::select! {
                answer = client => answer.expect("a pipe"),
                _ = server.into_future() => unreachable!("it serves for ever"),
                () = obey(&mut self.commands, &mut asked) => unreachable!("it has a way to the driver"),
            }
        });
        assert!(!self.panicked.load(Ordering::Relaxed), "a route panicked");
        Talk {
            answer,
            commands: asked,
            event,
        }
    }
}

/// Says something, listens until nothing more comes, lets something happen, listens again and hangs up.
async fn client(
    mut server: DuplexStream,
    bytes: &[u8],
    events: &Events,
    event: &str,
) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    server.write_all(bytes).await?;
    listen(&mut server, &mut answer).await?;
    events.emit("fuzz", Some(event), event);
    listen(&mut server, &mut answer).await?;
    server.shutdown().await?;
    listen(&mut server, &mut answer).await?;
    Ok(answer)
}

async fn listen(server: &mut DuplexStream, answer: &mut Vec<u8>) -> io::Result<()> {
    let mut quiet = 0;
    while quiet < QUIET {
        tokio::select! {
            biased;
            read = server.read_buf(answer) => match read? {
                0 => break,
                _ => quiet = 0,
            },
            () = tokio::task::yield_now() => quiet += 1,
        }
    }
    Ok(())
}

/// Somebody who may change things.
fn us() -> Caller {
    Caller(Some(Peer {
        uid: rustix::process::geteuid().as_raw(),
        groups: Vec::new(),
    }))
}

/// A panic ends the task of one connection, which is not ours: it is told here.
fn watched(app: Router, panicked: Arc<AtomicBool>) -> Router {
    app.layer(from_fn(move |request: Request, next: Next| {
        let panicked = panicked.clone();
        async move {
            let answer = AssertUnwindSafe(next.run(request)).catch_unwind().await;
            answer.unwrap_or_else(|_| {
                panicked.store(true, Ordering::Relaxed);
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            })
        }
    }))
}

/// A listener to which one comes.
struct Once(Option<DuplexStream>);

impl Listener for Once {
    type Io = DuplexStream;
    type Addr = ();

    async fn accept(&mut self) -> (DuplexStream, ()) {
        match self.0.take() {
            Some(stream) => (stream, ()),
            None => pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads what the driver reads of a command before it looks at the world.
async fn obey(commands: &mut Receiver<Command>, asked: &mut usize) {
    while let Some(command) = commands.recv().await {
        *asked += 1;
        if let Command::Attach(request, _) = &command {
            fuzz_wish(request);
        } else if let Command::Publish(_, request, _) = &command {
            publish(request);
        } else if let Command::LookUp(_, name, kind, _) = &command {
            let _ = (rtype_of(kind), name.parse().map(reverse_name));
        }
    }
}

/// What is published is shown as what was meant.
fn publish(request: &PublishRequest) {
    let Ok(target) = request.guest.parse::<Target>() else {
        return;
    };
    if let Ok(publish) = Publish::new(target.clone(), &request.ports) {
        let again = Publish::new(target, &publish.to_string());
        assert_eq!(again, Ok(publish));
    }
}
