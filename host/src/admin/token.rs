//! Token: whether a request may change something.
//!
//! It travels in a header of its own, `Authorization: Bearer`, which no browser sends along by itself: so a
//! page of somebody else can neither use a visitor's rights (CSRF) nor gain any by pointing its own name at
//! this port (DNS rebinding).

use axum::http::header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::answers;
use crate::domain::secret::Secret;

/// What a request says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It has the token.
    Trusted,
    /// It has none.
    Anonymous,
    /// It has another one.
    Wrong,
    /// There is none to have.
    Closed,
}

/// Compares digests, so that neither the token's text nor its length shows in the time that it takes.
pub(super) fn standing(token: &Secret, headers: &HeaderMap) -> Standing {
    if token.is_empty() {
        return Standing::Closed;
    }
    let Some(given) = headers.get(AUTHORIZATION) else { return Standing::Anonymous };
    let given = given.as_bytes();
    let is_bearer = given.len() > 7 && given[..7].eq_ignore_ascii_case(b"Bearer ");
    let given = if is_bearer { given[7..].trim_ascii() } else { b"" };
    let is_same = Sha256::digest(given).ct_eq(&Sha256::digest(token.reveal()));
    if is_bearer && bool::from(is_same) { Standing::Trusted } else { Standing::Wrong }
}

/// The answer to a request that may not change anything; none if it may.
pub(super) fn refusal(token: &Secret, headers: &HeaderMap) -> Option<Response> {
    let text = match standing(token, headers) {
        Standing::Trusted => return None,
        Standing::Closed => {
            return Some(answers::error(
                StatusCode::FORBIDDEN,
                "orders are not taken: set admin.token (SLUICE__ADMIN__TOKEN) of this Sluice, and send it as \
                 Authorization: Bearer TOKEN",
            ));
        }
        Standing::Anonymous => "a token is needed: send admin.token as Authorization: Bearer TOKEN",
        Standing::Wrong => {
            "this is not the token: send what admin.token (SLUICE__ADMIN__TOKEN) of this Sluice says, as \
             Authorization: Bearer TOKEN"
        }
    };
    let mut response = answers::error(StatusCode::UNAUTHORIZED, text);
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"sluice\""));
    Some(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_itself_as_a_bearer_is_trusted() {
        let token = Secret::new("0123456789abcdef");
        let of = |given: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, given.parse().expect("a header"));
            standing(&token, &headers)
        };
        for given in ["Bearer 0123456789abcdef", "bearer 0123456789abcdef", "BEARER   0123456789abcdef "] {
            assert_eq!(of(given), Standing::Trusted, "{given}");
        }
        for given in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdef0",
            "Bearer 0123456789ABCDEF",
            "0123456789abcdef",
            "Basic 0123456789abcdef",
        ] {
            assert_eq!(of(given), Standing::Wrong, "{given}");
        }
        assert_eq!(standing(&token, &HeaderMap::new()), Standing::Anonymous);
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer "));
        assert_eq!(standing(&Secret::default(), &headers), Standing::Closed, "no token opens nothing");
    }
}
