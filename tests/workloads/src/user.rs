//! The demo's user: sends requests, each of them part of a trace of its own.

use anyhow::{Context, Result, bail};

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: demo-user FRONTEND REQUESTS";
    let frontend = arguments.next().context(usage)?;
    let requests: u32 = arguments.next().context(usage)?.parse()?;
    let client = reqwest::Client::builder().no_proxy().build()?;
    for item in 0..requests {
        let response = client
            .get(format!("http://{frontend}/buy/{item}"))
            .header("traceparent", format!("00-{:032x}-{:016x}-01", item + 1, item + 1))
            .send()
            .await?;
        let expected = match item % 6 {
            4 => 404,
            5 => 502,
            _ => 201,
        };
        if response.status() != expected {
            bail!("item {item}: status {} instead of {expected}", response.status());
        }
        response.bytes().await?;
    }
    Ok(())
}
