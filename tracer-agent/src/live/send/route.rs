//! The way to a collector, and what it answers (OTLP specification, "OTLP/gRPC" and "OTLP/HTTP").

use std::{
    error::Error,
    io::Write,
    time::{Duration, SystemTime},
};

use anyhow::{Result, anyhow};
use bytes::{Buf, BufMut, Bytes};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use rustls::ClientConfig;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::{self, HeaderMap, HeaderValue, StatusCode, header, uri::PathAndQuery},
    metadata::{KeyAndValueRef, MetadataMap},
    transport::{Channel, ClientTlsConfig, Identity},
};

use super::endpoint::{Compression, Endpoint, Protocol};

/// By which the exports of tracers are known (`crate::noise::EXPORTER`).
const USER_AGENT: &str = concat!("tracer-otlp/", env!("CARGO_PKG_VERSION"));

/// An answer is short.
const ANSWER_MAX: usize = 64 << 10;

/// How often a silent connection with a request under way is asked whether it lives, and for how long.
const KEEP_ALIVE: Duration = Duration::from_secs(3);

/// A connection that nobody needs is closed.
const IDLE: Duration = Duration::from_secs(60);

/// What the collector made of a request.
pub(super) enum Answer {
    /// With how many spans that it did not take after all, and why.
    Taken {
        rejected: i64,
        reason: String,
    },
    Refused(String),
    /// Later, perhaps not before so long.
    Again {
        reason: String,
        after: Option<Duration>,
    },
}

impl Answer {
    fn again(reason: impl Into<String>) -> Self {
        Self::Again { reason: reason.into(), after: None }
    }
}

/// A way to a collector that is not taken yet.
pub(super) enum Transport {
    Grpc {
        endpoint: Box<tonic::transport::Endpoint>,
        compression: Compression,
        headers: MetadataMap,
        method: &'static str,
    },
    Http {
        tls: Box<ClientConfig>,
        request: http::Request<()>,
        compression: Compression,
        connect: Duration,
    },
}

pub(super) enum Route {
    Grpc {
        client: Grpc<Channel>,
        headers: MetadataMap,
        method: &'static str,
    },
    Http {
        client: Box<Client<HttpsConnector<HttpConnector>, Full<Bytes>>>,
        /// Each request is as this one, with its own content.
        request: http::Request<()>,
        compression: Compression,
    },
}

/// A request's content, as it is sent again and again.
#[derive(Clone)]
pub(super) struct Content(Bytes);

impl Transport {
    pub(super) fn new(endpoint: &Endpoint) -> Result<Self> {
        let headers = headers(endpoint)?;
        match endpoint.protocol {
            Protocol::Grpc => {
                let wrong = |error| anyhow!("`{}`: {}", endpoint.url, chain(&error));
                let mut transport = tonic::transport::Endpoint::from_shared(endpoint.url.to_string())
                    .and_then(|transport| transport.user_agent(USER_AGENT))
                    .map_err(wrong)?
                    .connect_timeout(endpoint.timeout)
                    // A connection that is dead without a word would be used for many requests.
                    .http2_keep_alive_interval(KEEP_ALIVE)
                    .keep_alive_timeout(KEEP_ALIVE);
                if let Some(tls) = &endpoint.tls {
                    let mut config = ClientTlsConfig::new().trust_anchors(tls.roots.roots.clone());
                    if let Some((certificates, key)) = &tls.identity {
                        config = config.identity(Identity::from_pem(certificates, key));
                    }
                    transport = transport.tls_config(config).map_err(wrong)?;
                }
                Ok(Self::Grpc {
                    endpoint: Box::new(transport),
                    compression: endpoint.compression,
                    headers: MetadataMap::from_headers(headers),
                    method: endpoint.signal.method(),
                })
            }
            Protocol::Http => {
                let mut request = http::Request::post(endpoint.url.as_str());
                if let Some(all) = request.headers_mut() {
                    all.extend(headers);
                    all.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
                    all.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
                    if endpoint.compression == Compression::Gzip {
                        all.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                    }
                }
                let tls = match &endpoint.tls {
                    Some(tls) => tls.client()?,
                    // Never used: the scheme is http.
                    None => {
                        ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
                            .with_safe_default_protocol_versions()?
                            .with_root_certificates(rustls::RootCertStore::empty())
                            .with_no_client_auth()
                    }
                };
                Ok(Self::Http {
                    tls: Box::new(tls),
                    request: request.body(())?,
                    compression: endpoint.compression,
                    connect: endpoint.timeout,
                })
            }
        }
    }

    /// In the runtime that will send: connections are made with the first request.
    pub(super) fn open(self) -> Route {
        match self {
            Self::Grpc { endpoint, compression, headers, method } => {
                // A path of the URL comes before that of the method.
                let origin = endpoint.uri().clone();
                let mut client =
                    Grpc::with_origin(endpoint.connect_lazy(), origin).max_decoding_message_size(ANSWER_MAX);
                if compression == Compression::Gzip {
                    client = client
                        .send_compressed(CompressionEncoding::Gzip)
                        .accept_compressed(CompressionEncoding::Gzip);
                }
                Route::Grpc { client, headers, method }
            }
            Self::Http { tls, request, compression, connect } => {
                let mut http = HttpConnector::new();
                http.enforce_http(false);
                http.set_connect_timeout(Some(connect));
                http.set_nodelay(true);
                let connector = HttpsConnectorBuilder::new()
                    .with_tls_config(*tls)
                    .https_or_http()
                    .enable_http1()
                    .wrap_connector(http);
                let client = Client::builder(TokioExecutor::new())
                    .pool_timer(TokioTimer::new())
                    .pool_idle_timeout(IDLE)
                    .build(connector);
                Route::Http { client: Box::new(client), request, compression }
            }
        }
    }
}

fn headers(endpoint: &Endpoint) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in &endpoint.headers {
        let mut value = HeaderValue::from_str(value)?;
        value.set_sensitive(true);
        headers.append(http::HeaderName::from_bytes(name.as_bytes())?, value);
    }
    Ok(headers)
}

impl Route {
    /// Made once, however often it is sent.
    pub(super) fn content(&self, bytes: &Bytes) -> Content {
        match self {
            Self::Http { compression: Compression::Gzip, .. } => Content(gzip(bytes)),
            // The library compresses by itself.
            _ => Content(bytes.clone()),
        }
    }

    pub(super) async fn export(&mut self, content: &Content) -> Answer {
        match self {
            Self::Grpc { client, headers, method } => {
                if let Err(error) = client.ready().await {
                    return Answer::again(chain(&error));
                }
                let mut request = Request::new(content.0.clone());
                for entry in headers.iter() {
                    if let KeyAndValueRef::Ascii(key, value) = entry {
                        request.metadata_mut().append(key, value.clone());
                    }
                }
                let path = PathAndQuery::from_static(method);
                match client.unary(request, path, Ready).await {
                    Ok(response) => taken(response.into_inner()),
                    Err(status) => failed(&status),
                }
            }
            Self::Http { client, request, .. } => {
                let (parts, ()) = request.clone().into_parts();
                let request = http::Request::from_parts(parts, Full::new(content.0.clone()));
                let response = match client.request(request).await {
                    Ok(response) => response,
                    Err(error) => return Answer::again(chain(&error)),
                };
                let (parts, body) = response.into_parts();
                if parts.status.is_success() {
                    let body = Limited::new(body, ANSWER_MAX).collect().await.map(|body| body.to_bytes());
                    return answered(&parts, body.ok());
                }
                // Only for the connection to be used again: what it says is not needed.
                let _ = Limited::new(body, ANSWER_MAX).collect().await;
                let reason = format!("status {}", parts.status);
                // "Failures": these may be tried again, and no others.
                match parts.status {
                    StatusCode::TOO_MANY_REQUESTS
                    | StatusCode::BAD_GATEWAY
                    | StatusCode::SERVICE_UNAVAILABLE
                    | StatusCode::GATEWAY_TIMEOUT => {
                        Answer::Again { reason, after: retry_after(&parts.headers) }
                    }
                    _ => Answer::Refused(reason),
                }
            }
        }
    }
}

/// What a response with a status of success comes to. One that broke off said that it took them.
fn answered(parts: &http::response::Parts, body: Option<Bytes>) -> Answer {
    let body = body.unwrap_or_default();
    let kind =
        parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    match kind {
        _ if body.is_empty() => taken(ExportTraceServiceResponse::default()),
        "application/x-protobuf" => match ExportTraceServiceResponse::decode(body) {
            Ok(response) => taken(response),
            Err(_) => Answer::Refused(format!("status {}, and an answer that is none of OTLP", parts.status)),
        },
        // Some answer so to everything.
        "application/json" | "" => taken(ExportTraceServiceResponse::default()),
        other => Answer::Refused(format!("status {}, and {other}: this is no OTLP receiver", parts.status)),
    }
}

/// `Retry-After` (RFC 9110, section 10.2.3): seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?;
    let date = SystemTime::from(date.timestamp());
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

fn gzip(bytes: &[u8]) -> Bytes {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let written = encoder.write_all(bytes).and_then(|()| encoder.finish());
    // A vector takes everything.
    written.unwrap_or_default().into()
}

/// An error with its causes: the first says little.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    // What the words of the library come to.
    if text.contains("InvalidContentType") {
        text.push_str(" (it does not speak TLS: use http://)");
    } else if text.contains("CaUsedAsEndEntity") {
        text.push_str(" (its certificate is one of an authority: a server needs one with CA:FALSE)");
    }
    text
}

/// Partial success: the collector says how many spans it did not take, and why. The answer for metrics has the
/// same fields.
fn taken(response: ExportTraceServiceResponse) -> Answer {
    let partial = response.partial_success.unwrap_or_default();
    Answer::Taken { rejected: partial.rejected_spans, reason: partial.error_message }
}

/// "Failures" again: the codes that may be tried again. A collector that is exhausted says when, or means
/// never.
fn failed(status: &Status) -> Answer {
    let after = retry_info(status.details());
    let reason = match status.source() {
        Some(cause) => format!("{:?}: {}: {}", status.code(), status.message(), chain(cause)),
        None => format!("{:?}: {}", status.code(), status.message()),
    };
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => Answer::Again { reason, after },
        Code::ResourceExhausted if after.is_some() => Answer::Again { reason, after },
        // What the library makes of a connection that breaks off in the middle.
        Code::Unknown if status.source().is_some() => Answer::Again { reason, after },
        _ => Answer::Refused(reason),
    }
}

/// `google.rpc.Status` with `google.rpc.RetryInfo` among its details (google/rpc/error_details.proto).
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(message, repeated, tag = "3")]
    details: Vec<Detail>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Detail {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    delay: Option<Delay>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Delay {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

fn retry_info(details: &[u8]) -> Option<Duration> {
    let status = RpcStatus::decode(details).ok()?;
    let is_retry = |detail: &&Detail| detail.type_url.ends_with("/google.rpc.RetryInfo");
    let info = RetryInfo::decode(status.details.iter().find(is_retry)?.value.clone()).ok()?;
    let delay = info.delay.unwrap_or_default();
    let nanos = u32::try_from(delay.nanos).unwrap_or(0).min(999_999_999);
    Some(Duration::new(u64::try_from(delay.seconds).unwrap_or(0), nanos))
}

/// Requests that are encoded already.
#[derive(Clone, Copy, Default)]
struct Ready;

impl Codec for Ready {
    type Encode = Bytes;
    type Decode = ExportTraceServiceResponse;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Ready {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, request: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(request);
        Ok(())
    }
}

impl Decoder for Ready {
    type Item = ExportTraceServiceResponse;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let bytes = bytes.copy_to_bytes(bytes.remaining());
        let response = ExportTraceServiceResponse::decode(bytes);
        response.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_to_come_again_is_read_in_both_forms() {
        let after = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, HeaderValue::from_str(text).unwrap());
            retry_after(&headers)
        };
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert_eq!(after("Fri, 31 Dec 1999 23:59:59 GMT"), Some(Duration::ZERO));
        let far = after("Thu, 31 Dec 2099 23:59:59 GMT").unwrap();
        assert!(far > Duration::from_secs(365 * 24 * 3600));
        assert_eq!((after("soon"), after("-1")), (None, None));
    }

    #[test]
    fn a_collector_that_is_exhausted_says_when_or_means_never() {
        let info = RetryInfo { delay: Some(Delay { seconds: 3, nanos: 500_000_000 }) };
        let detail = Detail {
            type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(),
            value: info.encode_to_vec().into(),
        };
        let details = RpcStatus { details: vec![detail] }.encode_to_vec();
        let status = Status::with_details(Code::ResourceExhausted, "busy", details.into());
        let Answer::Again { after, .. } = failed(&status) else { panic!("it may be tried again") };
        assert_eq!(after, Some(Duration::from_millis(3500)));
        assert!(matches!(failed(&Status::resource_exhausted("full")), Answer::Refused(_)));
        assert!(matches!(failed(&Status::unavailable("later")), Answer::Again { after: None, .. }));
        assert!(matches!(failed(&Status::unauthenticated("who")), Answer::Refused(_)));
    }
}
