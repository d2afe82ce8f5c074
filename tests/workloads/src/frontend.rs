//! The demo's first service: asks the second one, and passes on the header that says which trace a
//! request belongs to, as many services do.

use anyhow::{Context, Result};
use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;

const TRACE_HEADER: &str = "traceparent";

#[derive(Clone)]
struct Backend {
    address: String,
    client: reqwest::Client,
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: demo-frontend PORT BACKEND";
    let port: u16 = arguments.next().context(usage)?.parse()?;
    let backend = Backend {
        address: arguments.next().context(usage)?,
        client: reqwest::Client::builder().no_proxy().build()?,
    };
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    println!("listening on {}", listener.local_addr()?);
    let router = Router::new().route("/buy/{item}", get(buy)).with_state(backend);
    axum::serve(listener, router).await?;
    Ok(())
}

async fn buy(State(backend): State<Backend>, Path(item): Path<u32>, headers: HeaderMap) -> impl IntoResponse {
    let mut request = backend.client.get(format!("http://{}/price/{item}", backend.address));
    if let Some(trace) = headers.get(TRACE_HEADER) {
        request = request.header(TRACE_HEADER, trace);
    }
    match request.send().await {
        Ok(price) if price.status().is_success() => (StatusCode::CREATED, format!("bought item {item}\n")),
        Ok(price) if price.status() == StatusCode::NOT_FOUND => {
            (StatusCode::NOT_FOUND, format!("there is no item {item}\n"))
        }
        _ => (StatusCode::BAD_GATEWAY, "come back later\n".to_owned()),
    }
}
