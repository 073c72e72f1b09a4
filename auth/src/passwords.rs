//! Password hashes: argon2id at OWASP's parameters (m = 19 MiB, t = 2, p = 1). Few at a time, because each costs memory
//! and a core, and everybody who reaches the sign-in can ask for one. Where there is no password, a hash is computed all
//! the same, so that time does not tell who exists.

use std::sync::Arc;
use std::time::Duration;

use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Params, PasswordHasher as _, PasswordVerifier as _, Version};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zeroize::Zeroizing;

use crate::fault::Fault;

/// Computes hashes, within limits.
#[derive(Debug, Clone)]
pub(crate) struct Hasher {
    running: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    /// Hash of a password that nobody knows.
    dummy: Arc<str>,
}

/// The right to compute one hash.
#[derive(Debug)]
pub(crate) struct Turn(#[expect(dead_code, reason = "held, not read")] OwnedSemaphorePermit);

impl Hasher {
    pub(crate) fn new() -> Result<Self, Fault> {
        let nobody = hex::encode(net::random::<32>());
        Ok(Self {
            running: Arc::new(Semaphore::new(HASHES_AT_ONCE)),
            waiting: Arc::new(Semaphore::new(HASHES_WAITING)),
            dummy: hash_now(nobody.as_bytes())?.into(),
        })
    }

    /// The hash to be stored, as a PHC string.
    pub(crate) async fn hash(&self, password: Zeroizing<String>) -> Result<String, Fault> {
        let turn = self.turn().await?;
        run(turn, move || hash_now(password.as_bytes())).await?
    }

    /// Waits for the right to compute one hash.
    pub(crate) async fn turn(&self) -> Result<Turn, Fault> {
        let _place = self.waiting.try_acquire().map_err(|_| Fault::Limit(BUSY))?;
        tokio::time::timeout(WAIT_AT_MOST, self.running.clone().acquire_owned())
            .await
            .map_err(|_| Fault::Limit(BUSY))?
            .map(Turn)
            .map_err(|error| Fault::Internal(error.to_string()))
    }

    /// Whether `password` belongs to `hash`. Without a hash the answer is no, after the same time.
    pub(crate) async fn verify(
        &self,
        turn: Turn,
        password: Zeroizing<String>,
        hash: Option<String>,
    ) -> Result<bool, Fault> {
        let dummy = self.dummy.clone();
        run(turn, move || {
            let text = hash.as_deref().unwrap_or(&dummy);
            let parsed =
                PasswordHash::new(text).map_err(|error| Fault::Internal(error.to_string()))?;
            let good = argon2()?.verify_password(password.as_bytes(), &parsed).is_ok();
            Ok(good && hash.is_some())
        })
        .await?
    }
}

async fn run<T: Send + 'static>(
    turn: Turn,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Fault> {
    let work = tokio::task::spawn_blocking(move || {
        let result = work();
        drop(turn);
        result
    });
    work.await.map_err(|error| Fault::Internal(error.to_string()))
}

fn hash_now(password: &[u8]) -> Result<String, Fault> {
    let salt: [u8; 16] = net::random();
    let hash = argon2()?
        .hash_password_with_salt(password, &salt)
        .map_err(|error| Fault::Internal(error.to_string()))?;
    Ok(hash.to_string())
}

fn argon2() -> Result<Argon2<'static>, Fault> {
    let params =
        Params::new(19 * 1024, 2, 1, None).map_err(|error| Fault::Internal(error.to_string()))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

/// Hashes computed at once: 40 MiB and two cores at most, whoever asks.
const HASHES_AT_ONCE: usize = 2;
/// Callers that wait for their turn; at some 30 ms each the last waits about a second.
const HASHES_WAITING: usize = 64;
const WAIT_AT_MOST: Duration = Duration::from_secs(10);
const BUSY: &str = "too many people sign in at this moment: try again in a few seconds";

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Zeroizing<String> {
        Zeroizing::new(text.into())
    }

    #[tokio::test]
    async fn only_the_right_password_is_good() {
        let hasher = Hasher::new().unwrap();
        let hash = hasher.hash(secret("correct horse")).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert_ne!(hash, hasher.hash(secret("correct horse")).await.unwrap());
        let verify = async |text: &str, hash: Option<String>| {
            hasher.verify(hasher.turn().await.unwrap(), secret(text), hash).await.unwrap()
        };
        assert!(verify("correct horse", Some(hash.clone())).await);
        assert!(!verify("battery staple", Some(hash)).await);
        assert!(!verify("correct horse", None).await);
    }

    #[tokio::test]
    async fn turns_are_few() {
        let hasher = Hasher::new().unwrap();
        let first = hasher.turn().await.unwrap();
        let _second = hasher.turn().await.unwrap();
        tokio::select! {
            biased;
            _ = hasher.turn() => panic!("a third turn"),
            () = std::future::ready(()) => {}
        }
        drop(first);
        hasher.turn().await.unwrap();
    }
}
