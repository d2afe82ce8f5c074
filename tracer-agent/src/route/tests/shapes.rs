//! Services that are simulated: what they are asked for, and the routes of that.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

/// Numbers for simulations: the same in each run.
pub(super) struct Dice(ChaCha8Rng);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    pub(super) fn below(&mut self, most: usize) -> usize {
        (self.0.next_u64() % most as u64) as usize
    }

    pub(super) fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }

    pub(super) fn text(&mut self, letters: &str, length: usize) -> String {
        let letters = letters.as_bytes();
        (0..length).map(|_| char::from(letters[self.below(letters.len())])).collect()
    }

    /// Much more often a small one.
    pub(super) fn zipf(&mut self, most: usize) -> usize {
        let share = (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        ((most as f64 + 1.0).powf(share) - 1.0) as usize % most
    }

    pub(super) fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            list.swap(last, self.below(last + 1));
        }
    }
}

const HEX: &str = "0123456789abcdef";
const BASE62: &str = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
const SYLLABLES: [&str; 24] = [
    "ka", "lo", "mi", "ner", "ta", "vi", "so", "ru", "pel", "dan", "fi", "gro", "han", "jus", "bel", "cor",
    "wen", "zar", "ty", "lin", "mo", "ster", "qui", "ed",
];
const TITLES: [&str; 20] = [
    "how",
    "to",
    "learn",
    "rust",
    "quickly",
    "winter",
    "garden",
    "best",
    "recipes",
    "of",
    "summer",
    "why",
    "databases",
    "matter",
    "small",
    "houses",
    "and",
    "their",
    "history",
    "part",
];

impl Dice {
    pub(super) fn uuid(&mut self) -> String {
        [8, 4, 4, 4, 12].map(|length| self.text(HEX, length)).join("-")
    }

    pub(super) fn name(&mut self) -> String {
        let length = 2 + self.below(3);
        (0..length).map(|_| self.one(&SYLLABLES)).collect()
    }

    pub(super) fn slug(&mut self) -> String {
        let length = 2 + self.below(4);
        let mut parts: Vec<String> = (0..length).map(|_| self.one(&TITLES).to_owned()).collect();
        if self.below(3) == 0 {
            parts.push(self.below(1000).to_string());
        }
        parts.join("-")
    }

    pub(super) fn token(&mut self) -> String {
        let length = 8 + self.below(12);
        self.text(BASE62, length)
    }
}

pub(super) type Shape = fn(&mut Dice) -> (String, &'static str);

pub(super) fn rest_ids(dice: &mut Dice) -> (String, &'static str) {
    let id = dice.below(1_000_000);
    match dice.below(4) {
        0 => (format!("/api/v1/users/{id}"), "/api/v1/users/{id}"),
        1 => (format!("/api/v1/users/{id}/orders"), "/api/v1/users/{id}/orders"),
        2 => (format!("/api/v1/orders/{id}?x={id}"), "/api/v1/orders/{id}"),
        _ => (format!("/api/v1/orders/{id}/items/{}", dice.below(40)), "/api/v1/orders/{id}/items/{id}"),
    }
}

fn tokens(dice: &mut Dice) -> (String, &'static str) {
    match dice.below(5) {
        0 => (format!("/documents/{}", dice.uuid()), "/documents/{id}"),
        1 => (format!("/documents/{}/pages/{}", dice.uuid(), dice.below(99)), "/documents/{id}/pages/{id}"),
        2 => (format!("/blobs/{}", dice.text(HEX, 40)), "/blobs/{id}"),
        3 => (format!("/sessions/{}", dice.token()), "/sessions/{id}"),
        _ => (format!("/commits/{}/diff", dice.text(HEX, 8)), "/commits/{id}/diff"),
    }
}

fn slugs(dice: &mut Dice) -> (String, &'static str) {
    match dice.below(4) {
        0 => (format!("/blog/{}", dice.slug()), "/blog/{id}"),
        1 => (format!("/blog/{}/comments", dice.slug()), "/blog/{id}/comments"),
        2 => (format!("/tags/{}", dice.slug()), "/tags/{id}"),
        _ => (format!("/products/{}-{}/reviews", dice.slug(), dice.below(99)), "/products/{id}/reviews"),
    }
}

fn people(dice: &mut Dice) -> (String, &'static str) {
    let name = dice.name();
    match dice.below(5) {
        0 => (format!("/people/{name}"), "/people/{id}"),
        1 => (format!("/people/{name}/profile"), "/people/{id}/profile"),
        2 => (format!("/people/{name}/posts/{}", dice.below(50)), "/people/{id}/posts/{id}"),
        3 => (format!("/people/{name}.{}@example.org/mail", dice.name()), "/people/{id}/mail"),
        _ => (format!("/people/{name}{}/avatar.png", dice.below(1000)), "/people/{id}/avatar.png"),
    }
}

fn files(dice: &mut Dice) -> (String, &'static str) {
    const ROUTES: [&str; 6] = [
        "/files/{id}",
        "/files/{id}/{id}",
        "/files/{id}/{id}/{id}",
        "/files/{id}/{id}/{id}/{id}",
        "/files/{id}/{id}/{id}/{id}/{id}",
        "/files/{id}/{id}/{id}/{id}/{id}/{id}",
    ];
    let folders =
        ["docs", "src", "images", "tmp", "backup", "reports", "shared", "music", "old", "data", "x", "work"];
    let depth = dice.below(6);
    let mut path = "/files".to_owned();
    for _ in 0..depth {
        path = format!("{path}/{}", dice.one(&folders));
    }
    let end = dice.one(&[".txt", ".pdf", "", ".tar.gz", "-copy.jpg"]);
    (format!("{path}/{}{end}", dice.name()), ROUTES[depth])
}

fn dates(dice: &mut Dice) -> (String, &'static str) {
    let (year, month, day) = (1990 + dice.below(35), 1 + dice.below(12), 1 + dice.below(28));
    match dice.below(4) {
        0 => (format!("/archive/{year}/{month:02}/{day:02}"), "/archive/{id}/{id}/{id}"),
        1 => (format!("/archive/{year}/{month:02}/{day:02}/{}", dice.slug()), "/archive/{id}/{id}/{id}/{id}"),
        2 => (format!("/reports/{year}-{month:02}-{day:02}"), "/reports/{id}"),
        _ => (format!("/reports/{year}-{month:02}/{}", dice.uuid()), "/reports/{id}/{id}"),
    }
}

fn prefixed(dice: &mut Dice) -> (String, &'static str) {
    match dice.below(4) {
        0 => (format!("/v1/orders/ord_{}", dice.text(BASE62, 12)), "/v1/orders/{id}"),
        1 => (format!("/v1/customers/cus-{}", 1000 + dice.below(9_000_000)), "/v1/customers/{id}"),
        2 => (
            format!("/v1/invoices/INV-{}-{:04}/lines", 2000 + dice.below(26), dice.below(9999)),
            "/v1/invoices/{id}/lines",
        ),
        _ => (format!("/v1/payments/pi_{}/refunds", dice.text(BASE62, 24)), "/v1/payments/{id}/refunds"),
    }
}

/// With how many routes they have.
pub(super) const SHAPES: [(&str, Shape, usize); 7] = [
    ("rest", rest_ids, 4),
    ("tokens", tokens, 5),
    ("slugs", slugs, 4),
    ("people", people, 5),
    ("files", files, 6),
    ("dates", dates, 4),
    ("prefixed", prefixed, 4),
];

/// An API with many words: how often each of its routes is asked for.
pub(super) fn api(seed: u64) -> Vec<(String, usize)> {
    let mut dice = Dice::new(seed);
    let mut routes = Vec::new();
    let mut names: Vec<String> = (0..40).map(|_| dice.name() + "s").collect();
    names.sort();
    names.dedup();
    for (index, name) in names.iter().enumerate() {
        let often = 6 + 400 / (1 + index);
        routes.push((format!("/api/v1/{name}"), often));
        routes.push((format!("/api/v1/{name}/{{id}}"), 3 * often));
        if index < 25 {
            routes.push((format!("/api/v1/{name}/{{id}}/{}", dice.name()), often));
            routes.push((format!("/api/v1/{name}/{{id}}/{}/{{id}}", dice.name()), often));
            routes.push((format!("/api/v1/{name}/{}", dice.name()), 3));
            routes.push((format!("/api/v1/{name}/search"), 2));
        }
    }
    let words = [
        "/health",
        "/favicon.ico",
        "/404",
        "/v1beta1/deadbeef",
        "/api/v1/decade",
        "/api/v1/oauth2/token",
        "/api/v1/i18n",
        "/api/v1/2fa",
        "/api/v1/facade/{id}",
        "/api/v1/users/me",
        "/api/v1/users/{id}",
        "/api/v1/users/me/settings",
        "/api/v1/feed",
        "/api/v1/sha256",
        "/api/v1/auth/introspect",
        "/api/v1/reports/daily",
        "/",
    ];
    routes.extend(words.map(|word| (word.to_owned(), 4)));
    routes
}
