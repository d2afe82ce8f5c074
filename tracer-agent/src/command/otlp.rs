//! Where spans are sent to: flags, and the variables of the OpenTelemetry specification ("OTLP Exporter
//! Configuration"). A flag wins over a variable, the variable for traces over the one for all signals.

use std::{path::PathBuf, time::Duration};

use anyhow::anyhow;
use clap::Args;
use tracer_agent::live::send::endpoint::{Compression, Endpoint, Protocol, QUEUE, Said, Signal};

use super::{Exit, Failure, OrExit, parse_duration, parse_size};

#[derive(Args, Debug)]
#[command(
    next_help_heading = "OTLP (or OTEL_EXPORTER_OTLP_ENDPOINT, _HEADERS, _CERTIFICATE, … in the environment)"
)]
pub(crate) struct OtlpArguments {
    /// Sends the spans to an OTLP receiver as well (http://127.0.0.1:4318, https://…)
    #[arg(long = "otlp", value_name = "URL")]
    url: Option<String>,

    /// The protocol to send with; by default grpc for port 4317, else http/protobuf
    #[arg(long = "otlp-protocol", value_enum, value_name = "PROTOCOL")]
    protocol: Option<Protocol>,

    /// A header of each request, such as 'authorization=Bearer …'; may be given several times
    #[arg(long = "otlp-header", value_name = "NAME=VALUE", value_parser = parse_header)]
    headers: Vec<(String, String)>,

    /// How requests are compressed
    #[arg(long = "otlp-compression", value_enum, value_name = "HOW")]
    compression: Option<Compression>,

    /// How long one request may take (10s)
    #[arg(long = "otlp-timeout", value_name = "DURATION", value_parser = parse_duration)]
    timeout: Option<Duration>,

    /// Authorities to trust beside the system's, as PEM
    #[arg(long = "otlp-certificate", value_name = "FILE")]
    certificate: Option<PathBuf>,

    /// The tracer's own certificate for the receiver (mTLS), as PEM
    #[arg(long = "otlp-client-certificate", value_name = "FILE")]
    client_certificate: Option<PathBuf>,

    /// The key to it, as PEM
    #[arg(long = "otlp-client-key", value_name = "FILE")]
    client_key: Option<PathBuf>,

    /// Spans that wait for a slow receiver, in bytes (16MiB); past it the oldest go, counted
    #[arg(long = "otlp-queue", value_name = "SIZE", value_parser = parse_size)]
    queue: Option<u64>,
}

impl OtlpArguments {
    fn is_any_set(&self) -> bool {
        let files = [&self.certificate, &self.client_certificate, &self.client_key];
        self.protocol.is_some()
            || !self.headers.is_empty()
            || self.compression.is_some()
            || self.timeout.is_some()
            || files.into_iter().any(Option::is_some)
            || self.queue.is_some()
    }

    /// None if nobody named a receiver.
    pub(crate) fn endpoint(&self) -> Result<Option<Endpoint>, Failure> {
        let exact = self.url.is_none() && traces("ENDPOINT").is_some();
        let Some(url) = self.url.clone().or_else(|| variable("ENDPOINT").map(|(_, url)| url)) else {
            return if self.is_any_set() {
                let error = anyhow!("no receiver is named: --otlp URL says where to, the others how");
                Err(Failure::new(Exit::Usage, error))
            } else {
                Ok(None)
            };
        };
        // Variables are for other programs too, which may send elsewhere.
        let is_plain = url.starts_with("http://");
        let path = |flag: &Option<PathBuf>, name| {
            flag.clone().or_else(|| Some(variable(name).filter(|_| !is_plain)?.1.into()))
        };
        let mut headers = variable_headers()?;
        headers.retain(|(name, _)| !self.headers.iter().any(|(flag, _)| flag.eq_ignore_ascii_case(name)));
        headers.extend(self.headers.iter().cloned());
        let said = Said {
            signal: Signal::Traces,
            url,
            exact,
            protocol: match self.protocol {
                Some(protocol) => Some(protocol),
                None => choice("PROTOCOL", |text| match text {
                    "grpc" => Ok(Protocol::Grpc),
                    "http/protobuf" => Ok(Protocol::Http),
                    _ => Err("neither grpc nor http/protobuf"),
                })?,
            },
            insecure: choice("INSECURE", |text| Ok(text.eq_ignore_ascii_case("true")))?,
            headers,
            compression: match self.compression {
                Some(compression) => compression,
                None => choice("COMPRESSION", |text| match text {
                    "gzip" => Ok(Compression::Gzip),
                    "none" => Ok(Compression::None),
                    _ => Err("neither gzip nor none"),
                })?
                .unwrap_or_default(),
            },
            timeout: match self.timeout {
                Some(timeout) => Some(timeout),
                None => choice("TIMEOUT", |text| {
                    text.parse().map(Duration::from_millis).map_err(|_| "no number of milliseconds")
                })?,
            },
            certificate: path(&self.certificate, "CERTIFICATE"),
            client_certificate: path(&self.client_certificate, "CLIENT_CERTIFICATE"),
            client_key: path(&self.client_key, "CLIENT_KEY"),
            queue: Some(self.queue.map_or(QUEUE, |size| size.try_into().unwrap_or(usize::MAX))),
        };
        Ok(Some(Endpoint::new(&said).or_exit(Exit::Usage)?))
    }
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("a header has the form NAME=VALUE")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

fn traces(suffix: &str) -> Option<String> {
    super::variable(&format!("OTEL_EXPORTER_OTLP_TRACES_{suffix}"))
}

/// With the name that it was found by.
fn variable(suffix: &str) -> Option<(String, String)> {
    ["OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_"].into_iter().find_map(|prefix| {
        let name = format!("{prefix}{suffix}");
        super::variable(&name).map(|value| (name, value))
    })
}

fn choice<T>(
    suffix: &str,
    parse: impl FnOnce(&str) -> Result<T, &'static str>,
) -> Result<Option<T>, Failure> {
    let Some((name, text)) = variable(suffix) else { return Ok(None) };
    let wrong = |why| Failure::new(Exit::Usage, anyhow!("{name}: `{text}` is {why}"));
    parse(text.trim()).map(Some).map_err(wrong)
}

/// Pairs with commas between them, values with percent signs (as W3C Baggage has them).
fn variable_headers() -> Result<Vec<(String, String)>, Failure> {
    let Some((name, text)) = variable("HEADERS") else { return Ok(Vec::new()) };
    text.split(',')
        .filter(|pair| !pair.trim().is_empty())
        .map(|pair| {
            let (key, value) =
                parse_header(pair).map_err(|why| Failure::new(Exit::Usage, anyhow!("{name}: {why}")))?;
            Ok((key, decoded(&value)))
        })
        .collect()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, more @ ..] = rest {
        let digits = more.get(..2).and_then(|pair| std::str::from_utf8(pair).ok());
        match digits.filter(|_| *first == b'%').and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &more[2..];
            }
            None => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_headers_are_decoded() {
        assert_eq!(decoded("Basic%20YTpi%3D"), "Basic YTpi=");
        assert_eq!(decoded("100%"), "100%");
        assert_eq!(decoded("%zz%4"), "%zz%4");
        assert_eq!(parse_header(" a = b=c "), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(parse_header("a").is_err());
    }
}
