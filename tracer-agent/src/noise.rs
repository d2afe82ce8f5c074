//! Requests that nobody asks about: those by which machines look whether a service is well, and the exports
//! of other tracers, which would make spans of spans for ever.

/// What a request is besides a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noise {
    /// By which evidence.
    HealthCheck(&'static str),
    /// Spans on their way from a tracer like this one.
    Export,
}

/// How the user agents of health checks begin.
const AGENTS: [&str; 6] = [
    "kube-probe/",
    "GoogleHC/",
    "ELB-HealthChecker/",
    "Consul Health Check",
    "Envoy/HC",
    "Edge Health Probe",
];

/// Paths that stand for nothing else, and their last parts behind any prefix.
const PATHS: [&str; 13] = [
    "/healthz",
    "/livez",
    "/readyz",
    "/health",
    "/health/live",
    "/health/ready",
    "/healthcheck",
    "/liveness",
    "/readiness",
    "/-/healthy",
    "/-/ready",
    "/actuator/health",
    "/_health",
];

/// The service by which clients of gRPC ask (grpc/grpc `doc/health-checking.md`).
const SERVICE: &str = "/grpc.health.v1.Health/";

/// Below these everything is one.
const BELOW: [&str; 4] = ["/healthz/", "/livez/", "/readyz/", "/actuator/health/"];

/// How the exports of tracers are signed; see `live::send`.
pub const EXPORTER: &str = "tracer-otlp/";

/// By the user agent and the path of a request that only reads.
pub fn of(user_agent: Option<&[u8]>, path: &str, reads: bool) -> Option<Noise> {
    let is = |start: &str| user_agent.is_some_and(|agent| agent.starts_with(start.as_bytes()));
    if is(EXPORTER) {
        return Some(Noise::Export);
    }
    if AGENTS.iter().any(|agent| is(agent)) {
        return Some(Noise::HealthCheck("user_agent"));
    }
    let by_path = PATHS.contains(&path) || BELOW.iter().any(|start| path.starts_with(start));
    (reads && by_path || path.starts_with(SERVICE)).then_some(Noise::HealthCheck("path"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_checks_are_known_by_agent_or_path() {
        let agent = Some(&b"kube-probe/1.35"[..]);
        assert_eq!(of(agent, "/anything", true), Some(Noise::HealthCheck("user_agent")));
        assert_eq!(of(None, "/healthz", true), Some(Noise::HealthCheck("path")));
        assert_eq!(of(None, "/readyz/etcd", true), Some(Noise::HealthCheck("path")));
        assert_eq!(of(None, "/healthz", false), None);
        assert_eq!(of(None, "/grpc.health.v1.Health/Check", false), Some(Noise::HealthCheck("path")));
        assert_eq!(of(Some(b"curl/8"), "/health-insurance", true), None);
        assert_eq!(of(Some(b"tracer-otlp/0.1.0"), "/v1/traces", false), Some(Noise::Export));
    }
}
