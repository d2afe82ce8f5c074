//! The demo's second service: prices of items, some of them unknown, some slow, some failing.

use anyhow::{Context, Result};
use axum::{Json, Router, extract::Path, http::StatusCode, routing::get};
use serde_json::{Value, json};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<()> {
    let port: u16 = std::env::args().nth(1).context("usage: demo-backend PORT")?.parse()?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    println!("listening on {}", listener.local_addr()?);
    axum::serve(listener, Router::new().route("/price/{item}", get(price))).await?;
    Ok(())
}

async fn price(Path(item): Path<u32>) -> (StatusCode, Json<Value>) {
    match item % 6 {
        4 => (StatusCode::NOT_FOUND, Json(json!({ "error": "no such item" }))),
        5 => (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({ "error": "the price list is on fire" }))),
        _ => (StatusCode::OK, Json(json!({ "item": item, "price": item * 100 }))),
    }
}
