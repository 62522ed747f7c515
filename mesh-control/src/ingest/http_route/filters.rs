//! Filters of a rule or of a backend.

use gateway_api::experimental::httproutes::{
    HttpRouteRulesFilters, HttpRouteRulesFiltersRequestHeaderModifier, HttpRouteRulesFiltersRequestRedirect,
    HttpRouteRulesFiltersRequestRedirectPath,
    HttpRouteRulesFiltersRequestRedirectPathType as RedirectPathType,
    HttpRouteRulesFiltersRequestRedirectScheme as Scheme, HttpRouteRulesFiltersResponseHeaderModifier,
    HttpRouteRulesFiltersType as Type, HttpRouteRulesFiltersUrlRewrite, HttpRouteRulesFiltersUrlRewritePath,
    HttpRouteRulesFiltersUrlRewritePathType as RewritePathType,
};
use http::{HeaderName, HeaderValue};

use super::{Broken, Context, INCOMPATIBLE, UNSUPPORTED};
use crate::model::route::{HeaderChanges, PathRewrite, RouteAction};

/// What the filters of one list say together.
#[derive(Default)]
pub(super) struct Filters {
    pub(super) request_headers: HeaderChanges,
    pub(super) response_headers: HeaderChanges,
    pub(super) redirect: Option<RouteAction>,
    pub(super) path: Option<PathRewrite>,
    pub(super) host: Option<String>,
    /// A prefix is replaced: only matches by prefix make sense.
    pub(super) needs_prefix: bool,
}

impl Context {
    pub(super) fn filters<'a>(
        &mut self,
        owner: &str,
        filters: impl Iterator<Item = &'a HttpRouteRulesFilters>,
        broken: &mut Broken,
    ) -> Filters {
        let mut result = Filters::default();
        let mut seen: Vec<Type> = Vec::new();
        for (i, filter) in filters.enumerate() {
            let path = format!("{owner}.filters[{i}]");
            if seen.contains(&filter.r#type) {
                self.refuse(broken, INCOMPATIBLE, &path, "there are two filters of this type");
            }
            seen.push(filter.r#type.clone());
            self.filter(&path, filter, &mut result, broken);
        }
        if result.redirect.is_some() && (result.path.is_some() || result.host.is_some()) {
            let what = "a redirect and a rewrite exclude each other";
            self.refuse(broken, INCOMPATIBLE, &format!("{owner}.filters"), what);
        }
        result
    }

    fn filter(
        &mut self,
        path: &str,
        filter: &HttpRouteRulesFilters,
        result: &mut Filters,
        broken: &mut Broken,
    ) {
        let HttpRouteRulesFilters {
            cors,
            extension_ref,
            external_auth,
            request_header_modifier,
            request_mirror,
            request_redirect,
            response_header_modifier,
            r#type,
            url_rewrite,
        } = filter;
        // (name, this type, present, supported)
        let fields = [
            ("requestHeaderModifier", Type::RequestHeaderModifier, request_header_modifier.is_some(), true),
            (
                "responseHeaderModifier",
                Type::ResponseHeaderModifier,
                response_header_modifier.is_some(),
                true,
            ),
            ("requestRedirect", Type::RequestRedirect, request_redirect.is_some(), true),
            ("urlRewrite", Type::UrlRewrite, url_rewrite.is_some(), true),
            ("requestMirror", Type::RequestMirror, request_mirror.is_some(), false),
            ("extensionRef", Type::ExtensionRef, extension_ref.is_some(), false),
            ("cors", Type::Cors, cors.is_some(), false),
            ("externalAuth", Type::ExternalAuth, external_auth.is_some(), false),
        ];
        for (name, this, present, supported) in fields {
            let what = match (this == *r#type, present, supported) {
                (false, false, _) | (true, true, true) => continue,
                (_, _, false) => "filters of this type are not supported",
                (true, false, true) => "the type asks for it, but it is missing",
                (false, true, true) => "it does not belong to the type of this filter",
            };
            self.refuse(broken, UNSUPPORTED, &format!("{path}.{name}"), what);
        }
        if let Some(HttpRouteRulesFiltersRequestHeaderModifier { add, remove, set }) = request_header_modifier
        {
            let pairs = |add: bool, name: &String, value: &String| (add, name.clone(), value.clone());
            let adds = add.iter().flatten().map(|h| pairs(true, &h.name, &h.value));
            let sets = set.iter().flatten().map(|h| pairs(false, &h.name, &h.value));
            let path = format!("{path}.requestHeaderModifier");
            let removes = remove.as_deref().unwrap_or_default();
            result.request_headers = self.header_changes(&path, adds.chain(sets), removes, broken);
        }
        if let Some(HttpRouteRulesFiltersResponseHeaderModifier { add, remove, set }) =
            response_header_modifier
        {
            let pairs = |add: bool, name: &String, value: &String| (add, name.clone(), value.clone());
            let adds = add.iter().flatten().map(|h| pairs(true, &h.name, &h.value));
            let sets = set.iter().flatten().map(|h| pairs(false, &h.name, &h.value));
            let path = format!("{path}.responseHeaderModifier");
            let removes = remove.as_deref().unwrap_or_default();
            result.response_headers = self.header_changes(&path, adds.chain(sets), removes, broken);
        }
        if let Some(redirect) = request_redirect {
            self.redirect(&format!("{path}.requestRedirect"), redirect, result, broken);
        }
        if let Some(HttpRouteRulesFiltersUrlRewrite { hostname, path: rewrite }) = url_rewrite {
            if hostname.as_ref().is_some_and(|host| host.is_empty() || HeaderValue::from_str(host).is_err()) {
                self.refuse(
                    broken,
                    UNSUPPORTED,
                    &format!("{path}.urlRewrite.hostname"),
                    "this is not a host",
                );
            }
            result.host.clone_from(hostname);
            if let Some(HttpRouteRulesFiltersUrlRewritePath {
                replace_full_path,
                replace_prefix_match,
                r#type,
            }) = rewrite
            {
                let prefix = *r#type == RewritePathType::ReplacePrefixMatch;
                let path = format!("{path}.urlRewrite.path");
                let texts = (replace_full_path.as_ref(), replace_prefix_match.as_ref());
                result.path = self.path_rewrite(&path, prefix, texts, broken);
                result.needs_prefix |= prefix;
            }
        }
    }

    fn redirect(
        &mut self,
        path: &str,
        redirect: &HttpRouteRulesFiltersRequestRedirect,
        result: &mut Filters,
        broken: &mut Broken,
    ) {
        let HttpRouteRulesFiltersRequestRedirect { hostname, path: rewrite, port, scheme, status_code } =
            redirect;
        let rewrite = rewrite.as_ref().and_then(|rewrite| {
            let HttpRouteRulesFiltersRequestRedirectPath { replace_full_path, replace_prefix_match, r#type } =
                rewrite;
            let prefix = *r#type == RedirectPathType::ReplacePrefixMatch;
            result.needs_prefix |= prefix;
            let texts = (replace_full_path.as_ref(), replace_prefix_match.as_ref());
            self.path_rewrite(&format!("{path}.path"), prefix, texts, broken)
        });
        let number = port.map(|port| u16::try_from(port).ok().filter(|port| *port != 0));
        if number == Some(None) {
            self.refuse(broken, UNSUPPORTED, &format!("{path}.port"), "this is not a port");
        }
        let status = status_code.unwrap_or(302);
        let status = [301_u16, 302, 303, 307, 308].into_iter().find(|known| i64::from(*known) == status);
        if status.is_none() {
            let what = "the status of a redirect is 301, 302, 303, 307 or 308";
            self.refuse(broken, UNSUPPORTED, &format!("{path}.statusCode"), what);
        }
        let scheme = scheme.as_ref().map(|scheme| match scheme {
            Scheme::Http => "http".to_owned(),
            Scheme::Https => "https".to_owned(),
        });
        result.redirect = Some(RouteAction::Redirect {
            scheme,
            host: hostname.clone(),
            port: number.flatten(),
            path: rewrite,
            status: status.unwrap_or(302),
        });
    }

    fn path_rewrite(
        &mut self,
        path: &str,
        prefix: bool,
        texts: (Option<&String>, Option<&String>),
        broken: &mut Broken,
    ) -> Option<PathRewrite> {
        let rewrite = match (prefix, texts) {
            (true, (None, Some(text))) => Some(PathRewrite::Prefix(text.clone())),
            (false, (Some(text), None)) => Some(PathRewrite::Full(text.clone())),
            _ => None,
        };
        if rewrite.is_none() {
            let what = "write exactly the one replacement that its type names";
            self.refuse(broken, UNSUPPORTED, path, what);
        }
        rewrite
    }

    fn header_changes(
        &mut self,
        path: &str,
        values: impl Iterator<Item = (bool, String, String)>,
        remove: &[String],
        broken: &mut Broken,
    ) -> HeaderChanges {
        let mut changes = HeaderChanges::default();
        for (add, name, value) in values {
            if HeaderValue::from_str(&value).is_err() {
                let what = format!("{value:?} cannot be the value of a header");
                self.refuse(broken, UNSUPPORTED, path, &what);
            }
            let list = if add { &mut changes.add } else { &mut changes.set };
            if let Some(name) = self.header_name(path, &name, broken) {
                list.push((name, value));
            }
        }
        let removed = remove.iter().filter_map(|name| self.header_name(path, name, broken)).collect();
        changes.remove = removed;
        changes
    }

    fn header_name(&mut self, path: &str, name: &str, broken: &mut Broken) -> Option<String> {
        match HeaderName::from_bytes(name.as_bytes()) {
            Ok(name) if name == http::header::HOST => {
                let what = "Host is not changed as a header; use urlRewrite.hostname";
                self.refuse(broken, UNSUPPORTED, path, what);
                None
            }
            Ok(name) => Some(name.as_str().to_owned()),
            Err(_) => {
                self.refuse(broken, UNSUPPORTED, path, &format!("{name:?} is not the name of a header"));
                None
            }
        }
    }
}
