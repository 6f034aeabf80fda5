//! The grammar of namespace names: URI references of RFC 3986, as strict and as lax as libxml2 reads them.

/// Whether `text` is a URI or a relative reference. libxml2 rejects a document that declares any other namespace name.
pub(super) fn is_uri_reference(text: &str) -> bool {
    let (text, fragment) = text.split_once('#').unwrap_or((text, ""));
    // libxml2 lets brackets pass in fragments, for XPointer.
    if !all(fragment, |byte| is_path_byte(byte) || matches!(byte, b'/' | b'?' | b'[' | b']')) {
        return false;
    }
    let (text, query) = text.split_once('?').unwrap_or((text, ""));
    if !all(query, |byte| is_path_byte(byte) || matches!(byte, b'/' | b'?')) {
        return false;
    }
    if let Some((scheme, rest)) = text.split_once(':')
        && is_scheme(scheme)
    {
        return is_hierarchy(rest);
    }
    // A relative reference has no colon in its first segment.
    let first = text.split('/').next().unwrap_or_default();
    !first.contains(':') && is_hierarchy(text)
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
}

fn is_hierarchy(text: &str) -> bool {
    let path = match text.strip_prefix("//") {
        None => text,
        Some(rest) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            if !is_authority(authority) {
                return false;
            }
            path
        }
    };
    all(path, |byte| is_path_byte(byte) || byte == b'/')
}

fn is_authority(text: &str) -> bool {
    let (user, host) = text.split_once('@').unwrap_or(("", text));
    if !all(user, |byte| is_host_byte(byte) || byte == b':') {
        return false;
    }
    let (name, port) = match host.strip_prefix('[') {
        Some(literal) => match literal.split_once(']') {
            Some((_, port)) => ("", port),
            None => return false,
        },
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    all(name, is_host_byte) && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

/// libxml2 keeps the port as a C `int`.
fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<i32>().is_ok()
}

/// Whether all bytes are allowed, `%` only before two hexadecimal digits.
fn all(text: &str, allowed: impl Fn(u8) -> bool) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let fits = match byte {
            b'%' => [bytes.next(), bytes.next()].iter().all(|digit| digit.is_some_and(|d| d.is_ascii_hexdigit())),
            _ => allowed(byte),
        };
        if !fits {
            return false;
        }
    }
    true
}

fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte)
}

fn is_path_byte(byte: u8) -> bool {
    is_host_byte(byte) || matches!(byte, b':' | b'@')
}

#[cfg(test)]
mod tests {
    use super::is_uri_reference;

    #[test]
    fn references_that_libxml2_reads() {
        for text in [
            "http://openrosa.org/formdesigner/AAAA-1",
            "rel",
            "a/b:c",
            "#",
            "//h",
            "urn:uuid:1-2",
            "http://u@h:1/a;b=c,d",
            "//h:2147483647",
            "//h:00000000080",
            "http://[::1]/",
            "http://ex.org/a?b?c",
            "a&b",
            "file:///x",
            "a%20b",
        ] {
            assert!(is_uri_reference(text), "{text}");
        }
    }

    #[test]
    fn references_that_libxml2_rejects() {
        for text in [
            "a b",
            " ",
            "\n",
            "http://ex.org/é",
            "http://ex.org/[1]",
            "{x}",
            "a|b",
            "a#b#c",
            "%zz",
            "%4",
            "http://h:x/",
            "http://h:/",
            "http://[::1/",
            "http://[::1]x/",
            "http://h:99999999999/",
            "//h:2147483648",
            "1a:b",
            ":",
            "a<b",
            "a\\b",
            "a^b",
            "\"",
        ] {
            assert!(!is_uri_reference(text), "{text}");
        }
    }
}
