//! What a request says of the trace that it belongs to, in the words of those who trace: W3C Trace Context,
//! B3, Jaeger, Datadog, AWS X-Ray, SkyWalking, Google Cloud; and ids that only tell requests apart.

use std::{hash::Hasher, ops::RangeInclusive};

use base64::{Engine, engine::general_purpose::STANDARD};
use siphasher::sip128::{Hasher128, SipHasher13};
use smallvec::SmallVec;

use crate::protocol::Text;

/// Fields by which services pass on which request it is about, and nothing of a trace. The second is made anew
/// for each request by some.
pub const CORRELATION: &[&str] = &["x-correlation-id", "x-request-id"];

/// Values of one head that are kept, of one field, and the longest: nobody sends more.
const VALUES_MAX: usize = 64;
const SAME_MAX: usize = 4;
const VALUE_MAX: usize = 1024;

/// Sampled, of the flags of W3C Trace Context.
const SAMPLED: u8 = 1;

/// A trace, and the span in it that the sender says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    pub trace: [u8; 16],
    pub span: Option<[u8; 8]>,
    pub flags: u8,
}

impl Context {
    /// Whether both say the same, as far as they say it: some families have half of a trace id.
    fn agrees(&self, other: &Context) -> bool {
        is_one_trace(self.trace, other.trace)
            && (self.span.is_none() || other.span.is_none() || self.span == other.span)
    }
}

/// Whether both ids are of one trace, where some know its lower half alone.
pub fn is_one_trace(one: [u8; 16], other: [u8; 16]) -> bool {
    let [one, other] = [one, other].map(u128::from_be_bytes);
    one == other || one as u64 == other as u64 && (one >> 64 == 0 || other >> 64 == 0)
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Propagated {
    /// As the family says it that has the first word.
    pub context: Option<Context>,
    /// `tracestate`, where it goes with the context.
    pub state: Text,
    /// What other families say, where that is something else.
    pub others: SmallVec<[Context; 1]>,
    /// The traces that ids of the request stand for, the same wherever those are seen; the first counts.
    pub correlation: SmallVec<[[u8; 16]; 1]>,
    /// Values that are none.
    pub malformed: u32,
}

/// Takes the fields of a head that say something of the kind.
#[derive(Clone, Debug, Default)]
pub struct Reader {
    /// Fields with ids of requests.
    correlation: &'static [&'static str],
    values: Vec<(Header, Text)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Header {
    TraceParent,
    TraceState,
    B3,
    B3Trace,
    B3Span,
    B3Sampled,
    B3Flags,
    Jaeger,
    DatadogTrace,
    DatadogParent,
    DatadogPriority,
    DatadogTags,
    Amazon,
    SkyWalking,
    Cloud,
    /// By its place in the list.
    Correlation(usize),
}

const HEADERS: [(&str, Header); 15] = [
    ("traceparent", Header::TraceParent),
    ("tracestate", Header::TraceState),
    ("b3", Header::B3),
    ("x-b3-traceid", Header::B3Trace),
    ("x-b3-spanid", Header::B3Span),
    ("x-b3-sampled", Header::B3Sampled),
    ("x-b3-flags", Header::B3Flags),
    ("uber-trace-id", Header::Jaeger),
    ("x-datadog-trace-id", Header::DatadogTrace),
    ("x-datadog-parent-id", Header::DatadogParent),
    ("x-datadog-sampling-priority", Header::DatadogPriority),
    ("x-datadog-tags", Header::DatadogTags),
    ("x-amzn-trace-id", Header::Amazon),
    ("sw8", Header::SkyWalking),
    ("x-cloud-trace-context", Header::Cloud),
];

/// What a family says: nothing, something, or something that cannot be.
type Said = Result<Option<Context>, ()>;

impl Reader {
    pub fn new(correlation: &'static [&'static str]) -> Self {
        Self { correlation, values: Vec::new() }
    }

    /// Takes a field, if it is one of these. Its name may have letters of any case; a value that is not known is
    /// as good as none.
    pub fn take(&mut self, name: &str, value: impl FnOnce() -> Option<Text>) {
        if let Some(header) = self.header(name)
            && self.values.len() < VALUES_MAX
            && self.all(header).count() < SAME_MAX
            && let Some(value) = value()
        {
            // What is too long is malformed for every family.
            let fits = value.len() <= VALUE_MAX;
            self.values.push((header, if fits { Text::new(value.trim()) } else { Text::new_static("\0") }));
        }
    }

    /// Bytes of memory besides its own, about.
    pub fn held(&self) -> usize {
        let texts = self.values.iter().map(|(_, value)| value.len()).sum::<usize>();
        self.values.capacity() * size_of::<(Header, Text)>() + texts
    }

    fn header(&self, name: &str) -> Option<Header> {
        // Most fields start with another letter.
        let known = matches!(
            name.as_bytes().first(),
            Some(b't' | b'T' | b'b' | b'B' | b'x' | b'X' | b'u' | b'U' | b's' | b'S')
        );
        let listed = HEADERS.iter().filter(|_| known);
        let listed = listed.filter(|(listed, _)| listed.len() == name.len());
        listed
            .filter(|(listed, _)| listed.eq_ignore_ascii_case(name))
            .map(|(_, header)| *header)
            .next()
            .or_else(|| {
                let place = self.correlation.iter().position(|listed| listed.eq_ignore_ascii_case(name));
                place.map(Header::Correlation)
            })
    }

    /// What all of them come to; None if there was nothing.
    pub fn read(&self) -> Option<Box<Propagated>> {
        if self.values.is_empty() {
            return None;
        }
        let mut propagated = Propagated::default();
        let w3c = self.trace_parent();
        if matches!(w3c, Ok(Some(_))) {
            propagated.state = self.trace_state();
        }
        let families = [
            w3c,
            self.b3(),
            self.b3_fields(),
            self.jaeger(),
            self.datadog(),
            self.amazon(),
            self.skywalking(),
            self.cloud(),
        ];
        for said in families {
            match (said, &propagated.context) {
                (Err(()), _) => propagated.malformed += 1,
                (Ok(None), _) => {}
                (Ok(Some(context)), None) => propagated.context = Some(context),
                (Ok(Some(context)), Some(first)) => {
                    let told = first.agrees(&context)
                        || propagated.others.iter().any(|other| other.agrees(&context));
                    if !told {
                        propagated.others.push(context);
                    }
                }
            }
        }
        let listed = 0..self.correlation.len();
        propagated.correlation =
            listed.filter_map(|place| correlated(self.only(Header::Correlation(place))?)).collect();
        (propagated != Propagated::default()).then(|| Box::new(propagated))
    }

    fn all(&self, header: Header) -> impl Iterator<Item = &str> {
        self.values.iter().filter(move |(found, _)| *found == header).map(|(_, value)| value.as_str())
    }

    /// The value of a field that has one: several that differ say nothing.
    fn only(&self, header: Header) -> Option<&str> {
        let mut all = self.all(header);
        let first = all.next()?;
        all.all(|value| value == first).then_some(first)
    }

    /// As [`Self::only`], where several are an error.
    fn one(&self, header: Header) -> Result<Option<&str>, ()> {
        match self.only(header) {
            Some(value) => Ok(Some(value)),
            None if self.all(header).next().is_some() => Err(()),
            None => Ok(None),
        }
    }

    fn trace_parent(&self) -> Said {
        let mut all = self.all(Header::TraceParent);
        match (all.next(), all.next()) {
            (None, _) => Ok(None),
            (Some(value), None) => trace_parent(value).map(Some).ok_or(()),
            (Some(_), Some(_)) => Err(()),
        }
    }

    /// All of its fields are one list (section 3.3.1); nothing where one of its members is none.
    fn trace_state(&self) -> Text {
        const MEMBERS_MAX: usize = 32;
        let members = self.all(Header::TraceState).flat_map(|value| value.split(','));
        let members: Vec<&str> = members.map(str::trim).filter(|member| !member.is_empty()).collect();
        if members.len() > MEMBERS_MAX || !members.iter().all(|member| is_state(member)) {
            return Text::default();
        }
        Text::new(members.join(","))
    }

    /// <https://github.com/openzipkin/b3-propagation>, in one field.
    fn b3(&self) -> Said {
        let Some(value) = self.one(Header::B3)? else { return Ok(None) };
        let mut parts = value.split('-');
        let (Some(trace), span) = (parts.next(), parts.next()) else { return Err(()) };
        let Some(span) = span else {
            // Whether it is sampled, and nothing of a trace.
            return if matches!(trace, "0" | "1" | "d") { Ok(None) } else { Err(()) };
        };
        let flags = b3_flags(parts.next(), None).ok_or(())?;
        if parts.next().is_some_and(|parent| hex::<8>(parent, 16..=16).is_none()) || parts.next().is_some() {
            return Err(());
        }
        context(b3_trace(trace), hex(span, 16..=16), flags)
    }

    /// The same in several fields.
    fn b3_fields(&self) -> Said {
        let (Some(trace), Some(span)) = (self.one(Header::B3Trace)?, self.one(Header::B3Span)?) else {
            // One without the other; or the decision alone.
            let half = self.only(Header::B3Trace).or(self.only(Header::B3Span));
            return if half.is_some() { Err(()) } else { Ok(None) };
        };
        // A decision that nobody understands leaves the ids.
        let sampled = self.only(Header::B3Sampled).map(|sampled| match sampled {
            "0" | "false" | "False" => "0",
            _ => "1",
        });
        let flags = b3_flags(sampled, self.only(Header::B3Flags)).ok_or(())?;
        context(b3_trace(trace), hex(span, 16..=16), flags)
    }

    /// <https://www.jaegertracing.io/sdk-migration/#propagation-format>
    fn jaeger(&self) -> Said {
        let Some(value) = self.one(Header::Jaeger)? else { return Ok(None) };
        let plain = value.replace("%3A", ":").replace("%3a", ":");
        let parts: Vec<&str> = plain.split(':').collect();
        let [trace, span, _, flags] = parts[..] else { return Err(()) };
        let [flags] = hex::<1>(flags, 1..=2).ok_or(())?;
        let trace = hex(trace, 1..=32).filter(|trace| *trace != [0; 16]).ok_or(())?;
        let span: [u8; 8] = hex(span, 1..=16).ok_or(())?;
        Ok(Some(Context { trace, span: Some(span).filter(|span| *span != [0; 8]), flags: flags & SAMPLED }))
    }

    /// <https://docs.datadoghq.com/tracing/trace_collection/trace_context_propagation/>: decimal numbers of 64
    /// bits, the upper half of a trace id among the tags.
    fn datadog(&self) -> Said {
        let Some(low) = self.one(Header::DatadogTrace)? else { return Ok(None) };
        let low: u64 = decimal(low).filter(|low| *low != 0).ok_or(())?;
        let high = match self
            .only(Header::DatadogTags)
            .and_then(|tags| tags.split(',').find_map(|tag| tag.trim().strip_prefix("_dd.p.tid=")))
        {
            // A half that cannot be read leaves the other.
            Some(high) => hex(high, 16..=16).map_or(0, u64::from_be_bytes),
            None => 0,
        };
        let span = match self.one(Header::DatadogParent)? {
            Some(span) => decimal(span).ok_or(())?,
            None => 0,
        };
        let priority = self.only(Header::DatadogPriority).and_then(|priority| priority.parse::<i32>().ok());
        Ok(Some(Context {
            trace: (u128::from(high) << 64 | u128::from(low)).to_be_bytes(),
            span: (span != 0).then_some(span.to_be_bytes()),
            flags: u8::from(priority.is_none_or(|priority| priority > 0)),
        }))
    }

    /// <https://docs.aws.amazon.com/xray/latest/devguide/xray-concepts.html#xray-concepts-tracingheader>: a load
    /// balancer says no more than the root.
    fn amazon(&self) -> Said {
        let Some(value) = self.one(Header::Amazon)? else { return Ok(None) };
        let (mut trace, mut span, mut flags) = (None, None, SAMPLED);
        for (key, value) in value.split(';').filter_map(|part| part.trim().split_once('=')) {
            match key {
                "Root" => {
                    let digits = value.strip_prefix("1-").ok_or(())?;
                    let (time, id) = digits.split_once('-').ok_or(())?;
                    if time.len() != 8 {
                        return Err(());
                    }
                    trace = Some(hex::<16>(&format!("{time}{id}"), 32..=32).ok_or(())?);
                }
                "Parent" => span = Some(hex::<8>(value, 16..=16).filter(|span| *span != [0; 8]).ok_or(())?),
                "Sampled" if value == "0" => flags = 0,
                _ => {}
            }
        }
        // What a balancer says of itself alone is nothing of a trace.
        let Some(trace) = trace else { return if span.is_some() { Err(()) } else { Ok(None) } };
        if trace == [0; 16] { Err(()) } else { Ok(Some(Context { trace, span, flags })) }
    }

    /// <https://skywalking.apache.org/docs/main/latest/en/api/x-process-propagation-headers-v3/>: texts, of which
    /// ids are made in the way of OpenTelemetry's receiver for it.
    fn skywalking(&self) -> Said {
        let Some(value) = self.one(Header::SkyWalking)? else { return Ok(None) };
        let parts: Vec<&str> = value.split('-').collect();
        let [sampled @ ("0" | "1"), trace, segment, span, _, _, _, _] = parts[..] else { return Err(()) };
        let text = |part: &str| {
            let bytes = STANDARD.decode(part).map_err(|_| ())?;
            String::from_utf8(bytes).map_err(|_| ())
        };
        let span = decimal(span).and_then(|span| span.try_into().ok()).ok_or(())?;
        context(
            skywalking_trace(&text(trace)?),
            skywalking_span(&text(segment)?, span),
            u8::from(sampled == "1"),
        )
    }

    /// <https://cloud.google.com/trace/docs/trace-context#legacy-http-header>: `TRACE/SPAN;o=OPTIONS`
    fn cloud(&self) -> Said {
        let Some(value) = self.one(Header::Cloud)? else { return Ok(None) };
        let (ids, options) =
            value.split_once(';').map_or((value, None), |(ids, options)| (ids, Some(options)));
        let (trace, span) = ids.split_once('/').map_or((ids, None), |(trace, span)| (trace, Some(span)));
        let trace = hex(trace, 32..=32).filter(|trace| *trace != [0; 16]).ok_or(())?;
        let span = match span.filter(|span| !span.is_empty()) {
            Some(span) => decimal(span).ok_or(())?.to_be_bytes(),
            None => [0; 8],
        };
        let flags = match options.map(|options| options.strip_prefix("o=").unwrap_or_default()) {
            Some("") | None => SAMPLED,
            Some(options) => decimal(options).ok_or(())? as u8 & SAMPLED,
        };
        Ok(Some(Context { trace, span: Some(span).filter(|span| *span != [0; 8]), flags }))
    }
}

/// Both ids, or an error.
fn context(trace: Option<[u8; 16]>, span: Option<[u8; 8]>, flags: u8) -> Said {
    match (trace, span) {
        (Some(trace), Some(span)) if trace != [0; 16] && span != [0; 8] => {
            Ok(Some(Context { trace, span: Some(span), flags }))
        }
        _ => Err(()),
    }
}

/// A `traceparent` of any version that starts as version 00 does (W3C Trace Context, section 3.2).
fn trace_parent(value: &str) -> Option<Context> {
    let version = value.get(..2)?;
    let exact = value.len() == 55;
    if version == "ff" || (version == "00" && !exact) || !(exact || value.as_bytes().get(55) == Some(&b'-')) {
        return None;
    }
    let start = value.get(..55)?;
    // Lower case only, as the specification has it.
    if start.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return None;
    }
    let mut parts = start.split('-');
    let version = parts.next()?;
    let (trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    hex::<1>(version, 2..=2)?;
    let [flags] = hex::<1>(flags, 2..=2)?;
    // Of the flags those that are defined: sampled, and that the id is random.
    context(hex(trace, 32..=32), hex(span, 16..=16), flags & 3).ok()?
}

/// `key=value` of a `tracestate` (section 3.3.1.3).
fn is_state(member: &str) -> bool {
    let Some((key, value)) = member.split_once('=') else { return false };
    let first = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let letter = |byte: u8| first(byte) || b"_-*/@".contains(&byte);
    let printable = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'=';
    (1..=256).contains(&key.len())
        && first(key.as_bytes()[0])
        && key.bytes().all(letter)
        && (1..=256).contains(&value.len())
        && value.bytes().all(printable)
}

/// 64 or 128 bits.
fn b3_trace(digits: &str) -> Option<[u8; 16]> {
    if matches!(digits.len(), 16 | 32) { hex(digits, 16..=32) } else { None }
}

/// The decision to sample; without one, spans are taken.
fn b3_flags(sampled: Option<&str>, debug: Option<&str>) -> Option<u8> {
    match (sampled, debug) {
        (_, Some("1")) | (None | Some("1" | "d"), _) => Some(SAMPLED),
        (Some("0"), _) => Some(0),
        _ => None,
    }
}

/// As many digits as `lengths` allow, of either case, filled up with zeros in front.
fn hex<const N: usize>(digits: &str, lengths: RangeInclusive<usize>) -> Option<[u8; N]> {
    if !lengths.contains(&digits.len()) || digits.len() > 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (place, digit) in digits.bytes().rev().enumerate() {
        let value = char::from(digit).to_digit(16)? as u8;
        bytes[N - 1 - place / 2] |= value << (place % 2 * 4);
    }
    Some(bytes)
}

/// Digits alone.
fn decimal(digits: &str) -> Option<u64> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// A UUID; or its digits with two numbers behind them, folded into one (as the receiver of OpenTelemetry's
/// Collector does, so that ids of both meet).
fn skywalking_trace(text: &str) -> Option<[u8; 16]> {
    if text.len() <= 36 { uuid(text) } else { folded(text, 0) }
}

/// A span is a number within a segment.
fn skywalking_span(segment: &str, number: u32) -> Option<[u8; 8]> {
    let plain = if segment.len() == 36 { segment.replace('-', "") } else { segment.to_owned() };
    let id = u128::from_be_bytes(folded(&plain, number)?);
    Some(((id >> 64) as u64 ^ id as u64).to_be_bytes())
}

/// `DIGITS.NUMBER.NUMBER`, or the digits alone.
fn folded(text: &str, extra: u32) -> Option<[u8; 16]> {
    let (digits, numbers) = text.split_at_checked(32)?;
    let mut id: [u8; 16] = hex(digits, 32..=32)?;
    let mut mix =
        |from: usize, bytes: &[u8]| id[from..].iter_mut().zip(bytes).for_each(|(id, byte)| *id ^= byte);
    mix(0, &extra.to_le_bytes());
    if !numbers.is_empty() {
        let (middle, last) = numbers.strip_prefix('.')?.rsplit_once('.')?;
        let (middle, last): (i64, i64) = (middle.parse().ok()?, last.parse().ok()?);
        mix(4, &(middle as u32).to_le_bytes());
        mix(8, &last.to_le_bytes());
    }
    Some(id)
}

/// With its dashes or without.
fn uuid(text: &str) -> Option<[u8; 16]> {
    const DASHES: [usize; 4] = [8, 13, 18, 23];
    match text.len() {
        32 => hex(text, 32..=32),
        36 if text.is_ascii() && DASHES.iter().all(|at| text.as_bytes()[*at] == b'-') => {
            hex(&text.replace('-', ""), 32..=32)
        }
        _ => None,
    }
}

/// The trace that an id stands for, the same on every node; None for what can be the id of many requests. A
/// UUID is one as it is; of others, that are long enough, of the letters that ids have and with a digit among
/// them, it is made.
fn correlated(value: &str) -> Option<[u8; 16]> {
    const LENGTHS: RangeInclusive<usize> = 8..=200;
    if let Some(mut id) = uuid(value) {
        // Envoy writes into the version of the ids that it passes on how it decided to sample.
        if value.len() == 36 && matches!(id[6] >> 4, 0x9..=0xb) {
            id[6] = id[6] & 0xf | 0x40;
        }
        let zeros_or_ones = id == [0; 16] || id == [0xff; 16];
        return (!zeros_or_ones).then_some(id);
    }
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:+/=@|~#".contains(&byte);
    let fits = LENGTHS.contains(&value.len())
        && value.bytes().all(letter)
        && value.bytes().any(|byte| byte.is_ascii_digit());
    if !fits {
        return None;
    }
    let mut hasher = SipHasher13::new_with_keys(0, 0);
    hasher.write(value.as_bytes());
    Some(hasher.finish128().as_bytes()).filter(|trace| *trace != [0; 16])
}

#[cfg(test)]
mod tests;
