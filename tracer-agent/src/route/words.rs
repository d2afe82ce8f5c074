//! Words that stand in paths everywhere. The lists are in order.

/// What nobody is called: these stay words also among names.
const RESERVED: &[&str] = &[
    "autocomplete",
    "batch",
    "bulk",
    "count",
    "create",
    "current",
    "delete",
    "download",
    "edit",
    "export",
    "favicon.ico",
    "health",
    "healthz",
    "import",
    "index.html",
    "index.php",
    "login",
    "logout",
    "lookup",
    "me",
    "new",
    "register",
    "robots.txt",
    "search",
    "self",
    "signin",
    "signout",
    "signup",
    "sitemap.xml",
    "suggest",
    "update",
    "upload",
    "validate",
    "verify",
];

/// What is followed by the names of resources, rather than by one of them.
const PREFIXES: &[&str] = &[
    ".well-known",
    "admin",
    "api",
    "apis",
    "app",
    "backend",
    "beta",
    "external",
    "gateway",
    "internal",
    "latest",
    "mobile",
    "private",
    "public",
    "rest",
    "rpc",
    "service",
    "services",
    "stable",
    "svc",
    "twirp",
    "web",
];

/// With digits, and words all the same.
const TECHNICAL: &[&str] = &[
    "base32", "base58", "base62", "base64", "crc32", "ec2", "ed25519", "h264", "h265", "iso27001", "iso3166",
    "iso4217", "iso639", "iso8601", "md5", "mp3", "mp4", "oauth10", "rfc3339", "rfc822", "rsa2048", "saml20",
    "sha1", "sha224", "sha256", "sha384", "sha512", "utf16", "utf8", "x509", "x64", "x86",
];

const EXTENSIONS: &[&str] = &[
    "avif", "bin", "bmp", "bz2", "cfg", "conf", "css", "csv", "doc", "docx", "eot", "exe", "gif", "gz",
    "htm", "html", "ico", "jar", "jpeg", "jpg", "js", "json", "jsp", "log", "map", "md", "mjs", "mov", "mp3",
    "mp4", "ogg", "otf", "pdf", "php", "png", "ppt", "pptx", "rar", "rss", "svg", "tar", "tgz", "tif",
    "tiff", "toml", "ts", "tsv", "ttf", "txt", "wasm", "wav", "webm", "webp", "woff", "woff2", "xls", "xlsx",
    "xml", "yaml", "yml", "zip",
];

const STATUSES: &[u16] = &[
    200, 201, 202, 204, 206, 301, 302, 303, 304, 307, 308, 400, 401, 402, 403, 404, 405, 406, 408, 409, 410,
    412, 413, 415, 418, 422, 425, 428, 429, 431, 451, 500, 501, 502, 503, 504, 505,
];

pub(super) fn is_reserved(part: &str) -> bool {
    RESERVED.binary_search(&part).is_ok()
}

pub(super) fn is_prefix(part: &str) -> bool {
    is_in(PREFIXES, part)
}

pub(super) fn is_technical(part: &str) -> bool {
    is_in(TECHNICAL, part)
}

pub(super) fn is_extension(part: &str) -> bool {
    is_in(EXTENSIONS, part)
}

pub(super) fn is_status(number: u16) -> bool {
    STATUSES.binary_search(&number).is_ok()
}

fn is_in(list: &[&str], part: &str) -> bool {
    let order = |word: &&str| word.bytes().cmp(part.bytes().map(|byte| byte.to_ascii_lowercase()));
    list.binary_search_by(order).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_in_order() {
        for list in [RESERVED, PREFIXES, TECHNICAL, EXTENSIONS] {
            assert!(list.is_sorted(), "{list:?}");
        }
        assert!(STATUSES.is_sorted());
        assert!(is_reserved("search") && is_prefix("API") && is_extension("PDF") && !is_reserved("ME"));
    }
}
