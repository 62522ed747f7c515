//! Translated resources, shared by every stream that watches them: translated once per view, encoded once.
//! It holds only what somebody watches, and it must never answer one client with what was made for another.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use mesh_common::xds::ResourceType;
use mesh_common::xds::protobuf::Any;

use super::recorder::{Client, Notes, Recorder, Version};
use crate::model::facts::{FactKey, Facts};
use crate::model::store::Changed;
use crate::translate::{ClientView, Request, TranslateError};

/// What translates; a function, so that tests can put their own.
pub type Translator = fn(Request<'_>, &dyn ClientView, &dyn Facts) -> Result<Option<Any>, TranslateError>;

/// A resource's type and name.
pub type Key = (ResourceType, Arc<str>);

/// Tells streams apart, never used twice in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u64);

/// A translated resource.
#[derive(Debug, PartialEq, Eq)]
pub struct Resource {
    /// Its version.
    pub version: Version,
    /// Its encoding, shared.
    pub body: Bytes,
}

/// What there is to say about a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It stands for this.
    Found(Arc<Resource>),
    /// It stands for nothing at present.
    Missing,
}

impl Answer {
    fn version(&self) -> Option<Version> {
        match self {
            Self::Found(resource) => Some(resource.version),
            Self::Missing => None,
        }
    }
}

/// What a refresh did.
#[derive(Debug, Default)]
pub struct Refreshed {
    /// Who has to be told about what.
    pub tell: Vec<(StreamId, Key)>,
    /// Translations made.
    pub translations: usize,
    /// Translations that failed: the last good answer stays.
    pub failures: Vec<TranslateError>,
}

/// Sizes, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Names that somebody watches.
    pub names: usize,
    /// Resources: one per name and view.
    pub resources: usize,
    /// Bytes of their encodings.
    pub bytes: usize,
}

/// The cache.
pub struct Cache {
    translator: Translator,
    names: HashMap<Key, Named>,
    readers: HashMap<FactKey, HashSet<Key>>,
    size: Size,
}

/// All that is known of a name that somebody watches.
#[derive(Default)]
struct Named {
    variants: Vec<Arc<Variant>>,
    watchers: HashMap<StreamId, Watcher>,
}

struct Watcher {
    client: Arc<Client>,
    variant: Arc<Variant>,
}

/// One translation, good for every client that its view fits.
struct Variant {
    notes: Notes,
    answer: Answer,
}

impl Cache {
    /// An empty cache.
    pub fn new(translator: Translator) -> Self {
        Self { translator, names: HashMap::new(), readers: HashMap::new(), size: Size::default() }
    }

    /// Watches a name for a stream, and says what it stands for now. The caller must not let the facts change
    /// between this read and the next [`Cache::affected`].
    pub fn watch(
        &mut self,
        stream: StreamId,
        key: &Key,
        client: &Arc<Client>,
        facts: &dyn Facts,
    ) -> Refreshed {
        let mut done = Refreshed::default();
        let mut named = self.take(key).unwrap_or_default();
        if !named.watchers.contains_key(&stream) {
            let variant =
                find_or_make(self.translator, key, &mut named.variants, client, None, facts, &mut done);
            named.watchers.insert(stream, Watcher { client: Arc::clone(client), variant });
        }
        self.put(key, named, &BTreeSet::new());
        done
    }

    /// What a watched name stands for, for this stream.
    pub fn answer(&self, stream: StreamId, key: &Key) -> Option<Answer> {
        Some(self.names.get(key)?.watchers.get(&stream)?.variant.answer.clone())
    }

    /// Ends a watch. What nobody watches is dropped.
    pub fn unwatch(&mut self, stream: StreamId, key: &Key) {
        let Some(mut named) = self.take(key) else { return };
        let before = named.reads();
        named.watchers.remove(&stream);
        named.drop_unused();
        self.put(key, named, &before);
    }

    /// The watched names that were made from one of these facts.
    pub fn affected(&self, changed: &Changed) -> BTreeSet<Key> {
        match changed {
            Changed::Everything => self.names.keys().cloned().collect(),
            Changed::Facts(facts) => {
                facts.iter().filter_map(|fact| self.readers.get(fact)).flatten().cloned().collect()
            }
        }
    }

    /// Translates names again, and says which streams hold something else than before.
    pub fn refresh<'a>(&mut self, keys: impl IntoIterator<Item = &'a Key>, facts: &dyn Facts) -> Refreshed {
        let mut done = Refreshed::default();
        for key in keys {
            let Some(mut named) = self.take(key) else { continue };
            let before = named.reads();
            named.variants.clear();
            for (stream, watcher) in &mut named.watchers {
                let old = Some(&watcher.variant.answer);
                let client = &watcher.client;
                let new =
                    find_or_make(self.translator, key, &mut named.variants, client, old, facts, &mut done);
                if new.answer.version() != watcher.variant.answer.version() {
                    done.tell.push((*stream, key.clone()));
                }
                watcher.variant = new;
            }
            self.put(key, named, &before);
        }
        done
    }

    /// How much it holds.
    pub fn size(&self) -> Size {
        self.size
    }

    fn take(&mut self, key: &Key) -> Option<Named> {
        let named = self.names.remove(key)?;
        let Size { names, resources, bytes } = named.size();
        self.size.names -= names;
        self.size.resources -= resources;
        self.size.bytes -= bytes;
        Some(named)
    }

    /// Puts a name back (or leaves it out if nobody watches it) and keeps the index of readers exact.
    fn put(&mut self, key: &Key, named: Named, before: &BTreeSet<FactKey>) {
        let now = if named.watchers.is_empty() { BTreeSet::new() } else { named.reads() };
        for fact in before.difference(&now) {
            if let Some(readers) = self.readers.get_mut(fact) {
                readers.remove(key);
                if readers.is_empty() {
                    self.readers.remove(fact);
                }
            }
        }
        for fact in &now {
            match self.readers.get_mut(fact) {
                Some(readers) if readers.contains(key) => {}
                Some(readers) => _ = readers.insert(key.clone()),
                None => _ = self.readers.insert(fact.clone(), HashSet::from([key.clone()])),
            }
        }
        if !named.watchers.is_empty() {
            let Size { names, resources, bytes } = named.size();
            self.size.names += names;
            self.size.resources += resources;
            self.size.bytes += bytes;
            self.names.insert(key.clone(), named);
        }
    }
}

impl Named {
    /// Every fact that one of the variants was made from. `Destination(ip, 0)` stands for all ports of an
    /// address in a set of changes, so a read of any port is a read of it too.
    fn reads(&self) -> BTreeSet<FactKey> {
        let mut reads = BTreeSet::new();
        for fact in self.variants.iter().flat_map(|variant| variant.notes.facts.keys()) {
            if let FactKey::Destination(ip, _) = fact {
                reads.insert(FactKey::Destination(*ip, 0));
            }
            reads.insert(fact.clone());
        }
        reads
    }

    fn size(&self) -> Size {
        let bytes = |variant: &Arc<Variant>| match &variant.answer {
            Answer::Found(resource) => resource.body.len(),
            Answer::Missing => 0,
        };
        Size { names: 1, resources: self.variants.len(), bytes: self.variants.iter().map(bytes).sum() }
    }

    /// Besides this list only watchers hold variants.
    fn drop_unused(&mut self) {
        self.variants.retain(|variant| Arc::strong_count(variant) > 1);
    }
}

fn find_or_make(
    translator: Translator,
    key: &Key,
    variants: &mut Vec<Arc<Variant>>,
    client: &Client,
    last: Option<&Answer>,
    facts: &dyn Facts,
    done: &mut Refreshed,
) -> Arc<Variant> {
    if let Some(known) = variants.iter().find(|variant| variant.notes.view.fits(client)) {
        return Arc::clone(known);
    }
    done.translations += 1;
    let (notes, result) = translate(translator, key, client, facts);
    let answer = result.unwrap_or_else(|error| {
        done.failures.push(error);
        last.cloned().unwrap_or(Answer::Missing)
    });
    let variant = Arc::new(Variant { notes, answer });
    variants.push(Arc::clone(&variant));
    variant
}

/// One translation, outside of any cache.
pub fn translate(
    translator: Translator,
    (kind, name): &Key,
    client: &Client,
    facts: &dyn Facts,
) -> (Notes, Result<Answer, TranslateError>) {
    let recorder = Recorder::new(facts, client);
    let made = translator(Request { kind: *kind, name }, &recorder, &recorder);
    let notes = recorder.notes();
    let answer = made.map(|any| match any {
        Some(any) => Answer::Found(Arc::new(Resource {
            version: notes.version(*kind, name),
            body: Bytes::from(any.value),
        })),
        None => Answer::Missing,
    });
    (notes, answer)
}
