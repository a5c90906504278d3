//! One registry over HTTP: the distribution API (`/v2/`), and the two ways in that registries know,
//! a name with a password, and a token that a server gives for it.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Mutex;
use std::time::Duration;

use ureq::http::Response;
use ureq::{Agent, Body, SendBody};

use super::answer::{self, Challenge};
use super::conf::Source;
use super::error::RegistryError;
use super::login::{self, Login};
use super::{Access, tls};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(30);
/// How long a peer may be silent within a transfer.
const SILENCE: Duration = Duration::from_secs(120);
/// The most that is read of what is not a blob.
pub(super) const MAX_TEXT: u64 = 16 << 20;

/// What a request is for, in the words of the token servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Scope {
    Pull,
    Push,
    /// Only to see whether credentials are good.
    Enter,
}

/// A registry, and one repository in it.
pub(super) struct Client {
    agent: Agent,
    source: Source,
    base: String,
    login: Option<Login>,
    challenge: Option<Challenge>,
    tokens: Mutex<HashMap<Scope, String>>,
}

impl Client {
    /// Finds out how a registry is spoken to: with TLS or, where that is allowed, without, and what
    /// it wants to know.
    pub fn connect(source: &Source, access: &Access) -> Result<Self, RegistryError> {
        let verify = access.tls_verify.unwrap_or(!source.insecure);
        let tls = tls::config(&source.host, verify, access.cert_dir.as_deref())?;
        let agent = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
            .user_agent(concat!("arctern/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT))
            .timeout_per_read(Some(SILENCE))
            .timeout_per_write(Some(SILENCE))
            .build()
            .new_agent();
        let login = match &access.login {
            Some(login) => Some(login.clone()),
            None => {
                let name = format!("{}/{}", source.registry, source.path);
                login::find(name.trim_end_matches('/'), access.authfile.as_deref())?
            }
        };
        let mut client = Client {
            agent,
            source: source.clone(),
            base: format!("https://{}", source.host),
            login,
            challenge: None,
            tokens: Mutex::default(),
        };
        let answer = match client.ping() {
            Err(RegistryError::Unreachable { .. }) if !verify => {
                client.base = format!("http://{}", source.host);
                client.ping()
            }
            answer => answer,
        }?;
        if answer.status().as_u16() == 401 {
            let values = answer.headers().get_all("www-authenticate");
            let values = values.iter().filter_map(|value| value.to_str().ok());
            client.challenge = Challenge::read(values);
        }
        Ok(client)
    }

    /// Host and port, for messages.
    pub fn host(&self) -> &str {
        &self.source.host
    }

    /// The URL of something in the repository.
    pub fn url(&self, rest: &str) -> String {
        format!("{}/v2/{}/{rest}", self.base, self.source.path)
    }

    fn ping(&self) -> Result<Response<Body>, RegistryError> {
        let url = format!("{}/v2/", self.base);
        self.agent.get(&url).call().map_err(|e| self.unreachable(e))
    }

    /// Sees whether the registry takes our credentials.
    pub fn enter(&self) -> Result<(), RegistryError> {
        let url = format!("{}/v2/", self.base);
        self.good(self.get(&url, &[], Scope::Enter)?, "a login").map(drop)
    }

    /// GET. The answer has any status but 401 and 403.
    pub fn get(
        &self,
        url: &str,
        accept: &[&str],
        scope: Scope,
    ) -> Result<Response<Body>, RegistryError> {
        self.authorised(scope, |authorization| {
            let mut request = self.agent.get(url);
            if !accept.is_empty() {
                request = request.header("accept", accept.join(", "));
            }
            if let Some(value) = self.for_us(url, authorization) {
                request = request.header("authorization", value);
            }
            request.call()
        })
    }

    /// Whether something is there.
    pub fn has(&self, url: &str, scope: Scope) -> Result<bool, RegistryError> {
        let answer = self.authorised(scope, |authorization| {
            let mut request = self.agent.head(url);
            if let Some(value) = self.for_us(url, authorization) {
                request = request.header("authorization", value);
            }
            request.call()
        })?;
        Ok(answer.status().is_success())
    }

    /// POST without a body.
    pub fn post(&self, url: &str) -> Result<Response<Body>, RegistryError> {
        self.authorised(Scope::Push, |authorization| {
            let mut request = self.agent.post(url);
            if let Some(value) = self.for_us(url, authorization) {
                request = request.header("authorization", value);
            }
            request.send_empty()
        })
    }

    /// PUT of a stream of known length. It is read once, so the way in must be known before.
    pub fn put(
        &self,
        url: &str,
        media: &str,
        body: &mut dyn Read,
        length: u64,
    ) -> Result<Response<Body>, RegistryError> {
        let authorization = self.authorization(Scope::Push)?;
        let mut request =
            self.agent.put(url).content_type(media).header("content-length", length.to_string());
        if let Some(value) = self.for_us(url, authorization.as_deref()) {
            request = request.header("authorization", value);
        }
        let answer = request.send(SendBody::from_reader(body)).map_err(|e| self.unreachable(e))?;
        self.admitted(answer, Scope::Push)
    }

    /// A place that the registry named, as a URL: it may be a path.
    pub fn absolute(&self, location: &str) -> String {
        match location.starts_with('/') {
            true => format!("{}{location}", self.base),
            false => location.to_owned(),
        }
    }

    /// Credentials are for the registry, not for where it sends us.
    fn for_us<'a>(&self, url: &str, authorization: Option<&'a str>) -> Option<&'a str> {
        let own = url.strip_prefix(&self.base).is_some_and(|rest| rest.starts_with('/'));
        authorization.filter(|_| own)
    }

    /// Sends a request, and once more with a new token when the old one is over.
    fn authorised(
        &self,
        scope: Scope,
        send: impl Fn(Option<&str>) -> Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, RegistryError> {
        let authorization = self.authorization(scope)?;
        let mut answer = send(authorization.as_deref()).map_err(|e| self.unreachable(e))?;
        let token = matches!(self.challenge, Some(Challenge::Bearer { .. }));
        if answer.status().as_u16() == 401 && token {
            self.tokens().remove(&scope);
            let authorization = self.authorization(scope)?;
            answer = send(authorization.as_deref()).map_err(|e| self.unreachable(e))?;
        }
        self.admitted(answer, scope)
    }

    fn admitted(
        &self,
        answer: Response<Body>,
        scope: Scope,
    ) -> Result<Response<Body>, RegistryError> {
        match answer.status().as_u16() {
            401 | 403 => Err(self.denied(scope)),
            _ => Ok(answer),
        }
    }

    fn denied(&self, scope: Scope) -> RegistryError {
        let path = &self.source.path;
        let action = match scope {
            Scope::Pull => format!("pull from {path}"),
            Scope::Push => format!("push to {path}"),
            Scope::Enter => "in".to_owned(),
        };
        RegistryError::Denied {
            registry: self.source.host.clone(),
            user: self.login.as_ref().map(|login| login.user.clone()),
            action,
        }
    }

    fn tokens(&self) -> std::sync::MutexGuard<'_, HashMap<Scope, String>> {
        self.tokens.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The `Authorization` header for a request.
    fn authorization(&self, scope: Scope) -> Result<Option<String>, RegistryError> {
        match &self.challenge {
            None => Ok(None),
            Some(Challenge::Basic) => Ok(self.login.as_ref().map(Login::basic)),
            Some(Challenge::Bearer { realm, service }) => {
                if let Some(token) = self.tokens().get(&scope) {
                    return Ok(Some(token.clone()));
                }
                let token = self.token(realm, service.as_deref(), scope)?;
                let value = format!("Bearer {token}");
                self.tokens().insert(scope, value.clone());
                Ok(Some(value))
            }
        }
    }

    /// Gets a token for a scope.
    fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: Scope,
    ) -> Result<String, RegistryError> {
        // Passwords go the way that the registry itself is spoken to, or a safer one.
        if !realm.starts_with("https://") && self.base.starts_with("https://") {
            return Err(self.not_understood("a token", "its token server has no TLS"));
        }
        let what = match scope {
            Scope::Pull => Some(format!("repository:{}:pull", self.source.path)),
            Scope::Push => Some(format!("repository:{}:pull,push", self.source.path)),
            Scope::Enter => None,
        };
        let refresh = self.login.as_ref().and_then(|login| login.identity_token.as_deref());
        let answer = if let Some(refresh) = refresh {
            let mut form = vec![("grant_type", "refresh_token"), ("refresh_token", refresh)];
            form.push(("client_id", "arctern"));
            form.extend(service.map(|service| ("service", service)));
            form.extend(what.as_deref().map(|what| ("scope", what)));
            self.agent.post(realm).send_form(form)
        } else {
            let mut request = self.agent.get(realm);
            if let Some(service) = service {
                request = request.query("service", service);
            }
            if let Some(what) = &what {
                request = request.query("scope", what);
            }
            if let Some(login) = &self.login {
                request = request.query("account", &login.user);
                request = request.header("authorization", login.basic());
            }
            request.call()
        };
        let answer = answer.map_err(|e| self.unreachable(e))?;
        if matches!(answer.status().as_u16(), 400 | 401 | 403) {
            return Err(self.denied(scope));
        }
        let text = self.text(self.good(answer, "a token")?, "a token", 1 << 20)?;
        answer::token(&text).map_err(|reason| self.not_understood("a token", &reason))
    }

    /// An answer that says yes.
    pub fn good(
        &self,
        answer: Response<Body>,
        what: &str,
    ) -> Result<Response<Body>, RegistryError> {
        let status = answer.status().as_u16();
        if answer.status().is_success() {
            return Ok(answer);
        }
        let (registry, what) = (self.source.host.clone(), what.to_owned());
        if status == 404 {
            return Err(RegistryError::Missing { registry, what });
        }
        let text = self.text(answer, &what, 64 << 10).unwrap_or_default();
        Err(RegistryError::Answer { registry, status, what, message: answer::complaint(&text) })
    }

    /// A whole answer of limited length.
    pub fn text(
        &self,
        answer: Response<Body>,
        what: &str,
        limit: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let mut bytes = Vec::new();
        let read = answer.into_body().into_reader().take(limit + 1).read_to_end(&mut bytes);
        read.map_err(|source| RegistryError::Broken {
            registry: self.source.host.clone(),
            what: what.to_owned(),
            source,
        })?;
        if bytes.len() as u64 > limit {
            return Err(self.not_understood(what, &format!("it is longer than {limit} bytes")));
        }
        Ok(bytes)
    }

    pub fn not_understood(&self, what: &str, reason: &str) -> RegistryError {
        RegistryError::NotAnImage {
            registry: self.source.host.clone(),
            what: what.to_owned(),
            reason: reason.to_owned(),
        }
    }

    fn unreachable(&self, error: ureq::Error) -> RegistryError {
        let registry = self.source.host.clone();
        let tls = match &error {
            ureq::Error::Rustls(error) => Some(error.clone()),
            ureq::Error::Io(error) => {
                error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).cloned()
            }
            _ => None,
        };
        match tls {
            Some(source @ rustls::Error::InvalidCertificate(_)) => {
                RegistryError::Untrusted { registry, source: Box::new(source) }
            }
            _ => RegistryError::Unreachable { registry, source: Box::new(error) },
        }
    }
}
