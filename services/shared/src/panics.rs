//! What a panic said, for errors and logs: code that meets outside input catches panics, so that one record cannot end a service.

use std::any::Any;

/// The text of a panic that was caught, as `panic!` was given it.
pub fn text(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&'static str>() {
        return text;
    }
    panic.downcast_ref::<String>().map_or("a panic without a text", String::as_str)
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    #[test]
    fn the_text_of_any_panic_is_found() {
        let caught = |panics: fn()| catch_unwind(panics).map_err(|panic| super::text(panic.as_ref()).to_owned());
        assert_eq!(caught(|| panic!("plain")), Err("plain".to_owned()));
        assert_eq!(caught(|| panic!("number {}", 7)), Err("number 7".to_owned()));
        assert_eq!(caught(|| std::panic::panic_any(7)), Err("a panic without a text".to_owned()));
    }
}
