//! HTTP/JSON: one small function a verb. The OpenAPI document is generated from these and checked in.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::LazyLock;
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::serve::IncomingStream;
use axum::{Json, Router};
use futures::Stream;
use serde::Deserialize;
use tokio::net::UnixListener;
use utoipa::{IntoParams, OpenApi, ToSchema};
use vnet_core::model::{Home, PortKey};
use vnet_core::types::NetworkName;

use super::Listening;
use super::extract::{Body, Path, Query};
use crate::driver::{Command, Handle, Refusal, Reply};
use crate::privilege::Peer;
use crate::wire::{
    Applied, ApplyReply, ApplyRequest, DhcpView, DnsLookup, DnsView, ErrorBody, Event, LeaseView,
    NetworkView, Outcome, PortRequest, PortView, PublishRequest, PublishView, Status,
};

/// Answers requests until the daemon ends.
///
/// # Errors
/// When the socket breaks.
pub async fn serve(socket: Listening, driver: Handle, group: Option<u32>) -> io::Result<()> {
    let service = app(driver, group).into_make_service_with_connect_info::<Caller>();
    axum::serve(Wrapped(socket), service).await
}

/// Every route, behind the guard.
pub(crate) fn app(driver: Handle, group: Option<u32>) -> Router {
    let door = Door { group };
    router(driver).layer(middleware::from_fn_with_state(door, guard))
}

/// The listener, keeping the socket file's guard alive.
struct Wrapped(Listening);

impl axum::serve::Listener for Wrapped {
    type Io = tokio::net::UnixStream;
    type Addr = tokio::net::unix::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        <UnixListener as axum::serve::Listener>::accept(&mut self.0.listener).await
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.0.listener.local_addr()
    }
}

/// Who called; nobody, if the kernel did not tell.
#[derive(Debug, Clone)]
pub(crate) struct Caller(pub(crate) Option<Peer>);

impl Connected<IncomingStream<'_, Wrapped>> for Caller {
    fn connect_info(stream: IncomingStream<'_, Wrapped>) -> Self {
        Self(Peer::of(stream.io()).ok())
    }
}

#[derive(Debug, Clone, Copy)]
struct Door {
    group: Option<u32>,
}

/// Looking is free; changing is for root, the daemon's user and the group.
async fn guard(
    State(door): State<Door>,
    ConnectInfo(Caller(peer)): ConnectInfo<Caller>,
    request: Request,
    next: Next,
) -> Response {
    let looks = request.method() == Method::GET;
    if looks || peer.is_some_and(|peer| peer.may_write(door.group)) {
        return next.run(request).await;
    }
    let text = "you may look but not change: be root, or join the group `netd`";
    Wrong(Refusal::Forbidden(text.to_owned())).into_response()
}

/// The OpenAPI document, as it is checked in.
///
/// # Errors
/// Never, unless the document cannot be written as JSON.
pub fn openapi() -> serde_json::Result<String> {
    let mut document = Document::openapi();
    "netd".clone_into(&mut document.info.title);
    document.to_pretty_json()
}

#[derive(OpenApi)]
#[openapi(
    paths(
        status,
        networks,
        network,
        apply,
        start,
        stop,
        restart,
        stop_all,
        remove,
        autostart,
        ports,
        port,
        attach,
        detach,
        leases,
        lease,
        release,
        reserve,
        dhcp,
        dns,
        flush_dns,
        look_up,
        publications,
        publish,
        unpublish,
        events
    ),
    components(schemas(Applied, Event, ErrorBody))
)]
struct Document;

fn router(driver: Handle) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/networks", get(networks))
        .route("/v1/networks/{name}", get(network).delete(remove))
        .route("/v1/networks/{name}/start", post(start))
        .route("/v1/networks/{name}/stop", post(stop))
        .route("/v1/networks/{name}/restart", post(restart))
        .route("/v1/networks/{name}/autostart", post(autostart))
        .route("/v1/networks/{name}/publications", post(publish))
        .route(
            "/v1/networks/{name}/publications/{protocol}/{port}",
            delete(unpublish),
        )
        .route("/v1/apply", post(apply))
        .route("/v1/stop-all", post(stop_all))
        .route("/v1/ports", get(ports).post(attach))
        .route("/v1/ports/{network}/{name}", get(port).delete(detach))
        .route("/v1/leases", get(leases))
        .route("/v1/leases/{network}/{address}", get(lease).delete(release))
        .route("/v1/leases/{network}/{address}/reserve", post(reserve))
        .route("/v1/dhcp", get(dhcp))
        .route("/v1/dns", get(dns))
        .route("/v1/dns/flush", post(flush_dns))
        .route("/v1/dns/{network}/lookup", get(look_up))
        .route("/v1/publications", get(publications))
        .route("/v1/events", get(events))
        .route("/v1/openapi.json", get(document))
        .fallback(nothing_here)
        .method_not_allowed_fallback(not_so)
        .with_state(driver)
}

/// A refusal as HTTP.
pub(super) struct Wrong(pub(super) Refusal);

impl IntoResponse for Wrong {
    fn into_response(self) -> Response {
        let (status, code) = match &self.0 {
            Refusal::NotFound(_) => (StatusCode::NOT_FOUND, "not-found"),
            Refusal::Exists(_) => (StatusCode::CONFLICT, "exists"),
            Refusal::Conflict(_) => (StatusCode::CONFLICT, "conflict"),
            Refusal::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
            Refusal::Forbidden(_) => (StatusCode::FORBIDDEN, "forbidden"),
            Refusal::Failed(_) => (StatusCode::INTERNAL_SERVER_ERROR, "failed"),
        };
        (
            status,
            Json(ErrorBody {
                error: self.0.to_string(),
                code: code.to_owned(),
            }),
        )
            .into_response()
    }
}

impl<E: Into<Refusal>> From<E> for Wrong {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

type Answer<T> = Result<Json<T>, Wrong>;

async fn ask<T>(driver: &Handle, command: impl FnOnce(Reply<T>) -> Command) -> Answer<T> {
    driver.ask(command).await.map(Json).map_err(Wrong)
}

/// Only of one network.
#[derive(Debug, Deserialize, IntoParams)]
struct Of {
    /// The network's name.
    network: Option<String>,
}

/// Whether a network starts with the daemon.
#[derive(Debug, Deserialize, ToSchema)]
struct OnOff {
    /// Yes or no.
    on: bool,
}

async fn nothing_here() -> Wrong {
    Wrong(Refusal::NotFound(
        "there is no such path: see /v1/openapi.json".to_owned(),
    ))
}

async fn not_so() -> Response {
    let error = ErrorBody {
        error: "this path has no such verb: see /v1/openapi.json".to_owned(),
        code: "invalid".to_owned(),
    };
    (StatusCode::METHOD_NOT_ALLOWED, Json(error)).into_response()
}

async fn document() -> Response {
    static TEXT: LazyLock<serde_json::Result<String>> = LazyLock::new(openapi);
    match &*TEXT {
        Ok(text) => ([("content-type", "application/json")], text.as_str()).into_response(),
        Err(e) => Wrong(Refusal::Failed(e.to_string())).into_response(),
    }
}

#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = Status)))]
async fn status(State(driver): State<Handle>) -> Answer<Status> {
    ask(&driver, Command::Status).await
}

#[utoipa::path(get, path = "/v1/networks", responses((status = 200, body = Vec<NetworkView>)))]
async fn networks(State(driver): State<Handle>) -> Answer<Vec<NetworkView>> {
    ask(&driver, Command::Networks).await
}

#[utoipa::path(get, path = "/v1/networks/{name}", params(("name" = String, Path)), responses((status = 200, body = NetworkView), (status = 404, body = ErrorBody)))]
async fn network(State(driver): State<Handle>, Path(name): Path<String>) -> Answer<NetworkView> {
    let name: NetworkName = name.parse()?;
    ask(&driver, |r| Command::Network(name, r)).await
}

#[utoipa::path(post, path = "/v1/apply", request_body = ApplyRequest, responses((status = 200, body = ApplyReply), (status = 409, body = ErrorBody), (status = 422, body = ErrorBody)))]
async fn apply(
    State(driver): State<Handle>,
    Body(request): Body<ApplyRequest>,
) -> Answer<ApplyReply> {
    ask(&driver, |r| Command::Apply(request, r)).await
}

#[utoipa::path(post, path = "/v1/networks/{name}/start", params(("name" = String, Path)), responses((status = 200, body = Outcome), (status = 404, body = ErrorBody)))]
async fn start(State(driver): State<Handle>, Path(name): Path<String>) -> Answer<Outcome> {
    let name: NetworkName = name.parse()?;
    ask(&driver, |r| Command::Start(name, r)).await
}

#[utoipa::path(post, path = "/v1/networks/{name}/stop", params(("name" = String, Path)), responses((status = 200, body = Outcome), (status = 404, body = ErrorBody)))]
async fn stop(State(driver): State<Handle>, Path(name): Path<String>) -> Answer<Outcome> {
    let name: NetworkName = name.parse()?;
    ask(&driver, |r| Command::Stop(name, r)).await
}

#[utoipa::path(post, path = "/v1/networks/{name}/restart", params(("name" = String, Path)), responses((status = 200, body = Outcome), (status = 404, body = ErrorBody)))]
async fn restart(State(driver): State<Handle>, Path(name): Path<String>) -> Answer<Outcome> {
    let name: NetworkName = name.parse()?;
    ask(&driver, |r| Command::Restart(name, r)).await
}

#[utoipa::path(post, path = "/v1/stop-all", responses((status = 200, body = Outcome)))]
async fn stop_all(State(driver): State<Handle>) -> Answer<Outcome> {
    ask(&driver, Command::StopAll).await
}

#[utoipa::path(delete, path = "/v1/networks/{name}", params(("name" = String, Path)), responses((status = 200, body = Outcome), (status = 404, body = ErrorBody)))]
async fn remove(State(driver): State<Handle>, Path(name): Path<String>) -> Answer<Outcome> {
    let name: NetworkName = name.parse()?;
    ask(&driver, |r| Command::Delete(name, r)).await
}

#[utoipa::path(post, path = "/v1/networks/{name}/autostart", params(("name" = String, Path)), request_body = OnOff, responses((status = 200, body = Outcome), (status = 404, body = ErrorBody)))]
async fn autostart(
    State(driver): State<Handle>,
    Path(name): Path<String>,
    Body(body): Body<OnOff>,
) -> Answer<Outcome> {
    let name: NetworkName = name.parse()?;
    ask(&driver, |r| Command::Autostart(name, body.on, r)).await
}

#[utoipa::path(get, path = "/v1/ports", params(Of), responses((status = 200, body = Vec<PortView>)))]
async fn ports(State(driver): State<Handle>, Query(of): Query<Of>) -> Answer<Vec<PortView>> {
    ask(&driver, |r| Command::Ports(of.network, r)).await
}

fn key(network: &str, name: &str) -> Result<PortKey, Refusal> {
    let home = match network.strip_prefix("bridge:") {
        Some(bridge) => Home::Bridge(bridge.parse()?),
        None => Home::Network(network.parse()?),
    };
    Ok(PortKey {
        home,
        name: name.parse()?,
    })
}

#[utoipa::path(get, path = "/v1/ports/{network}/{name}", params(("network" = String, Path, description = "A network, or bridge:NAME"), ("name" = String, Path)), responses((status = 200, body = PortView), (status = 404, body = ErrorBody)))]
async fn port(
    State(driver): State<Handle>,
    Path((network, name)): Path<(String, String)>,
) -> Answer<PortView> {
    let key = key(&network, &name)?;
    ask(&driver, |r| Command::Port(key, r)).await
}

#[utoipa::path(post, path = "/v1/ports", request_body = PortRequest, responses((status = 200, body = PortView), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 422, body = ErrorBody)))]
async fn attach(
    State(driver): State<Handle>,
    Body(request): Body<PortRequest>,
) -> Answer<PortView> {
    ask(&driver, |r| Command::Attach(request, r)).await
}

#[utoipa::path(delete, path = "/v1/ports/{network}/{name}", params(("network" = String, Path), ("name" = String, Path)), responses((status = 200, body = Outcome), (status = 404, body = ErrorBody)))]
async fn detach(
    State(driver): State<Handle>,
    Path((network, name)): Path<(String, String)>,
) -> Answer<Outcome> {
    let key = key(&network, &name)?;
    ask(&driver, |r| Command::Detach(key, r)).await
}

#[utoipa::path(get, path = "/v1/leases", params(Of), responses((status = 200, body = Vec<LeaseView>), (status = 404, body = ErrorBody)))]
async fn leases(State(driver): State<Handle>, Query(of): Query<Of>) -> Answer<Vec<LeaseView>> {
    ask(&driver, |r| Command::Leases(of.network, r)).await
}

fn leased(network: &str, address: &str) -> Result<(NetworkName, IpAddr), Refusal> {
    let unknown = || {
        let who = address.escape_debug();
        Refusal::NotFound(format!(
            "`{who}` is no address, name or MAC of a lease: `vnet lease list` shows those there are"
        ))
    };
    Ok((network.parse()?, address.parse().map_err(|_| unknown())?))
}

#[utoipa::path(get, path = "/v1/leases/{network}/{address}", params(("network" = String, Path), ("address" = String, Path)), responses((status = 200, body = LeaseView), (status = 404, body = ErrorBody)))]
async fn lease(
    State(driver): State<Handle>,
    Path((network, address)): Path<(String, String)>,
) -> Answer<LeaseView> {
    let (network, address) = leased(&network, &address)?;
    ask(&driver, |r| Command::Lease(network, address, r)).await
}

#[utoipa::path(post, path = "/v1/leases/{network}/{address}/reserve", params(("network" = String, Path), ("address" = String, Path)), responses((status = 200, description = "The network's document has a reservation of it now", body = Outcome), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn reserve(
    State(driver): State<Handle>,
    Path((network, address)): Path<(String, String)>,
) -> Answer<Outcome> {
    let (network, address) = leased(&network, &address)?;
    ask(&driver, |r| Command::Reserve(network, address, r)).await
}

#[utoipa::path(delete, path = "/v1/leases/{network}/{address}", params(("network" = String, Path), ("address" = String, Path)), responses((status = 200, body = Outcome), (status = 404, body = ErrorBody)))]
async fn release(
    State(driver): State<Handle>,
    Path((network, address)): Path<(String, String)>,
) -> Answer<Outcome> {
    let (network, address) = leased(&network, &address)?;
    ask(&driver, |r| Command::Release(network, address, r)).await
}

#[utoipa::path(get, path = "/v1/dhcp", responses((status = 200, body = DhcpView)))]
async fn dhcp(State(driver): State<Handle>) -> Answer<DhcpView> {
    ask(&driver, Command::Dhcp).await
}

#[utoipa::path(get, path = "/v1/dns", responses((status = 200, body = DnsView)))]
async fn dns(State(driver): State<Handle>) -> Answer<DnsView> {
    ask(&driver, Command::Dns).await
}

#[utoipa::path(post, path = "/v1/dns/flush", responses((status = 200, description = "What upstreams said is forgotten", body = Outcome)))]
async fn flush_dns(State(driver): State<Handle>) -> Answer<Outcome> {
    ask(&driver, Command::FlushDns).await
}

/// A question.
#[derive(Debug, Deserialize, IntoParams)]
struct Asked {
    /// The name, or an address to ask for the name of.
    name: String,
    /// The type of records; when left out `A`, and `PTR` for an address.
    r#type: Option<String>,
}

#[utoipa::path(get, path = "/v1/dns/{network}/lookup", params(("network" = String, Path), Asked), responses((status = 200, body = DnsLookup), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)))]
async fn look_up(
    State(driver): State<Handle>,
    Path(network): Path<String>,
    Query(asked): Query<Asked>,
) -> Answer<DnsLookup> {
    let network: NetworkName = network.parse()?;
    let usual = match asked.name.parse::<IpAddr>() {
        Ok(_) => "PTR",
        Err(_) => "A",
    };
    let kind = asked.r#type.unwrap_or_else(|| usual.to_owned());
    ask(&driver, |r| Command::LookUp(network, asked.name, kind, r)).await
}

#[utoipa::path(get, path = "/v1/publications", params(Of), responses((status = 200, body = Vec<PublishView>)))]
async fn publications(
    State(driver): State<Handle>,
    Query(of): Query<Of>,
) -> Answer<Vec<PublishView>> {
    ask(&driver, |r| Command::Publications(of.network, r)).await
}

#[utoipa::path(post, path = "/v1/networks/{name}/publications", params(("name" = String, Path)), request_body = PublishRequest, responses((status = 200, body = PublishView), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 422, body = ErrorBody)))]
async fn publish(
    State(driver): State<Handle>,
    Path(name): Path<String>,
    Body(request): Body<PublishRequest>,
) -> Answer<PublishView> {
    let name: NetworkName = name.parse()?;
    ask(&driver, |r| Command::Publish(name, request, r)).await
}

#[utoipa::path(delete, path = "/v1/networks/{name}/publications/{protocol}/{port}", params(("name" = String, Path), ("protocol" = String, Path), ("port" = u16, Path)), responses((status = 200, body = Outcome), (status = 404, body = ErrorBody)))]
async fn unpublish(
    State(driver): State<Handle>,
    Path((name, protocol, port)): Path<(String, String, String)>,
) -> Answer<Outcome> {
    let name: NetworkName = name.parse()?;
    let protocol = protocol.parse::<vnet_core::model::Protocol>()?;
    let invalid = || Refusal::Invalid(format!("`{}` is not a port number", port.escape_debug()));
    let port = port.parse().map_err(|_| invalid())?;
    ask(&driver, |r| Command::Unpublish(name, port, protocol, r)).await
}

#[utoipa::path(get, path = "/v1/events", responses((status = 200, description = "Server-sent events; each `data` is an Event", content_type = "text/event-stream")))]
async fn events(
    State(driver): State<Handle>,
) -> Sse<impl Stream<Item = Result<sse::Event, Infallible>>> {
    let receiver = driver.events.subscribe();
    let stream = futures::stream::unfold(receiver, |mut receiver| async move {
        loop {
            match receiver.recv().await {
                Ok(event) => {
                    let Ok(data) = serde_json::to_string(&event) else {
                        continue;
                    };
                    let event = sse::Event::default()
                        .id(event.id.to_string())
                        .event(event.kind)
                        .data(data);
                    return Some((Ok(event), receiver));
                }
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return None,
            }
        }
    });
    Sse::new(stream).keep_alive(KeepAlive::new().interval(Duration::from_secs(15)))
}
