//! The Hive Metastore by its Thrift service; versions 2.3 to 4.
//!
//! Only calls that all of these versions have are made (Hive 4 has no `get_table` any more). They are few, so they are made by hand over the wire
//! of the crate `thrift` ([`wire`]), which keeps what newer versions add to a table. Kerberos and other SASL are not spoken.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use thrift::protocol::TType;

use super::options::{CatalogOptions, host_and_port};
use super::{Catalog, CatalogError, CatalogName, HeldDatabase, HeldTable, Registration};

mod connection;
mod table;
mod wire;

use self::connection::{CallError, Connection, Server, Timeouts};
use self::wire::{Fields, Value};

/// Tables that are read at once.
const TABLES_AT_ONCE: usize = 100;

/// The number of the result among the fields of an answer; other numbers are exceptions.
const RESULT: i16 = 0;

/// `ClientCapability.INSERT_ONLY_TABLES`: without it a metastore from 3 on refuses to show tables of that sort, which others may have made.
const INSERT_ONLY_TABLES: i32 = 2;

/// A Hive Metastore.
pub struct HiveCatalog {
    addresses: Vec<String>,
    link: Arc<Mutex<Link>>,
}

/// The servers, with the connection to one of them.
struct Link {
    servers: Vec<Server>,
    next: usize,
    open: Option<Connection>,
}

/// An exception of an answer: its number among those that the call declares, and what it says.
struct Exception {
    number: i16,
    reason: String,
}

type Answer = Result<Value, Exception>;

impl HiveCatalog {
    /// A metastore that is connected to with its first call.
    ///
    /// # Errors
    /// A key of the options cannot be used; it is named.
    pub fn new(options: &CatalogOptions) -> Result<Self, String> {
        let tls = options.ca_file.as_deref().map(connection::tls).transpose()?;
        let timeouts = Timeouts {
            connect: Duration::from_millis(options.connect_timeout_ms),
            request: Duration::from_millis(options.request_timeout_ms),
        };
        let server = |uri: &String| {
            let (host, port) = host_and_port(uri)?;
            Ok(Server { host, port, timeouts, tls: tls.clone() })
        };
        let servers = options.uris.iter().map(server).collect::<Result<Vec<_>, String>>()?;
        Ok(Self { addresses: options.uris.clone(), link: Arc::new(Mutex::new(Link { servers, next: 0, open: None })) })
    }

    /// Asks one of the servers, on a thread that may block.
    async fn ask(&self, method: &'static str, arguments: Fields) -> Result<Answer, CatalogError> {
        let link = Arc::clone(&self.link);
        let asking = tokio::task::spawn_blocking(move || {
            link.lock().unwrap_or_else(PoisonError::into_inner).call(method, &arguments)
        });
        let unreachable = |source: Box<dyn std::error::Error + Send + Sync>| CatalogError::Unreachable {
            addresses: self.addresses.join(", "),
            source,
        };
        let mut fields = match asking.await.map_err(|error| unreachable(error.into()))? {
            Ok(fields) => fields,
            Err(CallError::Exception(reason)) => {
                return Err(CatalogError::Refused { action: format!("do `{method}`"), reason });
            }
            Err(error) => return Err(unreachable(error.into())),
        };
        Ok(match fields.pop_last() {
            Some((RESULT, value)) => Ok(value),
            None => Ok(Value::Bool(true)),
            Some((number, exception)) => {
                let reason = exception.as_fields().and_then(|fields| fields.get(&1)?.as_text());
                Err(Exception { number, reason: reason.unwrap_or("it does not say why").to_owned() })
            }
        })
    }

    /// A table with all that the metastore has of it, if it is there.
    async fn whole_tables(&self, database: &str, names: &[&str]) -> Result<Vec<Fields>, CatalogError> {
        let capabilities = Fields::from([(1, Value::List(TType::I32, vec![Value::I32(INSERT_ONLY_TABLES)]))]);
        let request = Fields::from([
            (1, Value::text(database)),
            (2, Value::texts(names.iter().copied())),
            (3, Value::Struct(capabilities)),
        ]);
        let answer = self.ask("get_table_objects_by_name_req", Fields::from([(1, Value::Struct(request))])).await?;
        let found = match answer {
            Ok(result) => result,
            Err(Exception { number: UNKNOWN_DATABASE, .. }) => return Ok(Vec::new()),
            Err(exception) => return Err(refused(format!("read tables of {database}"), exception)),
        };
        let tables = found.as_fields().and_then(|result| result.get(&1)).map(Value::elements).unwrap_or_default();
        Ok(tables.iter().filter_map(Value::as_fields).cloned().collect())
    }

    async fn whole_table(&self, name: &CatalogName) -> Result<Option<Fields>, CatalogError> {
        Ok(self.whole_tables(&name.database, &[&name.table]).await?.pop())
    }
}

/// Exceptions by their numbers among those that the calls declare.
const UNKNOWN_DATABASE: i16 = 3;
const ALREADY_THERE: i16 = 1;
const NO_SUCH: i16 = 1;

fn refused(action: String, exception: Exception) -> CatalogError {
    CatalogError::Refused { action, reason: exception.reason }
}

/// Seconds since 1970, as tables are dated.
fn now_seconds() -> i32 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i32::try_from(since.as_secs()).unwrap_or(i32::MAX)
}

impl Link {
    /// Asks over the open connection, or else each server once. The error tells what was met at each.
    fn call(&mut self, method: &str, arguments: &Fields) -> Result<Fields, CallError> {
        let mut met = Vec::new();
        // One that was left open may have been closed meanwhile, by a server that began anew; that is no try of it.
        if let Some(connection) = self.open.take() {
            match self.over(connection, method, arguments) {
                Err(CallError::Broken(error)) => met.push(format!("over the open connection: {error}")),
                answered => return answered,
            }
        }
        for _ in 0..self.servers.len() {
            let Some(server) = self.servers.get(self.next) else { break };
            let place = format!("{}:{}", server.host, server.port);
            match Connection::open(server) {
                Ok(connection) => match self.over(connection, method, arguments) {
                    Err(CallError::Broken(error)) => met.push(format!("{place}: {error}")),
                    answered => return answered,
                },
                Err(error) => met.push(format!("{place}: {error}")),
            }
            self.next = (self.next + 1) % self.servers.len();
        }
        Err(CallError::Broken(met.join("; ")))
    }

    fn over(&mut self, mut connection: Connection, method: &str, arguments: &Fields) -> Result<Fields, CallError> {
        let answered = connection.call(method, arguments);
        if !matches!(answered, Err(CallError::Broken(_))) {
            self.open = Some(connection);
        }
        answered
    }
}

#[async_trait]
impl Catalog for HiveCatalog {
    fn addresses(&self) -> Vec<String> {
        self.addresses.clone()
    }

    async fn databases(&self) -> Result<Vec<HeldDatabase>, CatalogError> {
        let answer = self.ask("get_all_databases", Fields::new()).await?;
        let names = answer.map_err(|exception| refused("list databases".into(), exception))?;
        let mut found = Vec::new();
        for name in names.elements().iter().filter_map(Value::as_text) {
            match self.ask("get_database", Fields::from([(1, Value::text(name))])).await? {
                Ok(database) => {
                    // Field 4 of a database: its parameters.
                    let parameters = database.as_fields().and_then(|fields| fields.get(&4)).map(Value::as_text_map);
                    let root = parameters.and_then(|mut parameters| parameters.remove(table::MARK_ROOT));
                    found.push(HeldDatabase { name: name.to_lowercase(), root });
                }
                Err(Exception { number: NO_SUCH, .. }) => {}
                Err(exception) => return Err(refused(format!("read database {name}"), exception)),
            }
        }
        Ok(found)
    }

    async fn tables(&self, database: &str) -> Result<Vec<HeldTable>, CatalogError> {
        let answer = self.ask("get_all_tables", Fields::from([(1, Value::text(database))])).await?;
        let names = answer.map_err(|exception| refused(format!("list tables of {database}"), exception))?;
        let names: Vec<&str> = names.elements().iter().filter_map(Value::as_text).collect();
        let mut found = Vec::with_capacity(names.len());
        for names in names.chunks(TABLES_AT_ONCE) {
            found.extend(self.whole_tables(database, names).await?.iter().filter_map(table::held));
        }
        Ok(found)
    }

    async fn create_database(&self, database: &str, root: &str) -> Result<(), CatalogError> {
        let made = Fields::from([
            (1, Value::text(database)),
            (2, Value::text("Tables of CommCare Lake")),
            (4, Value::text_map([(table::MARK_ROOT, root)])),
        ]);
        match self.ask("create_database", Fields::from([(1, Value::Struct(made))])).await? {
            Ok(_) | Err(Exception { number: ALREADY_THERE, .. }) => Ok(()),
            Err(exception) => Err(refused(format!("create database {database}"), exception)),
        }
    }

    async fn create_table(&self, wanted: &Registration) -> Result<(), CatalogError> {
        let name = &wanted.name;
        let made = Value::Struct(table::new_table(wanted, now_seconds()));
        match self.ask("create_table", Fields::from([(1, made)])).await? {
            Ok(_) => Ok(()),
            // Made by a call whose answer was lost, or by another writer; or by somebody else meanwhile.
            Err(Exception { number: ALREADY_THERE, reason }) => match self.whole_table(name).await? {
                Some(there) if is_of(&there, &wanted.mark.root) => self.alter_table(wanted).await,
                _ => Err(CatalogError::Refused { action: format!("create table {name}"), reason }),
            },
            Err(exception) => Err(refused(format!("create table {name}"), exception)),
        }
    }

    async fn alter_table(&self, wanted: &Registration) -> Result<(), CatalogError> {
        let name = &wanted.name;
        let gone = || Exception { number: NO_SUCH, reason: "it is not there any more, or not of this lake".into() };
        let there = self.whole_table(name).await?.filter(|there| is_of(there, &wanted.mark.root));
        let there = there.ok_or_else(|| refused(format!("alter table {name}"), gone()))?;
        let arguments = Fields::from([
            (1, Value::text(&name.database)),
            (2, Value::text(&name.table)),
            (3, Value::Struct(table::as_registered(there, wanted))),
        ]);
        let altered = self.ask("alter_table", arguments).await?;
        altered.map(drop).map_err(|exception| refused(format!("alter table {name}"), exception))
    }

    async fn drop_table(&self, name: &CatalogName, root: &str) -> Result<(), CatalogError> {
        match self.whole_table(name).await? {
            None => return Ok(()),
            Some(there) if !is_of(&there, root) => {
                let reason = "others have made it, so it is left alone".into();
                return Err(CatalogError::Refused { action: format!("drop table {name}"), reason });
            }
            Some(_) => {}
        }
        // The third: whether files are deleted.
        let arguments =
            Fields::from([(1, Value::text(&name.database)), (2, Value::text(&name.table)), (3, Value::Bool(false))]);
        match self.ask("drop_table", arguments).await? {
            Ok(_) | Err(Exception { number: NO_SUCH, .. }) => Ok(()),
            Err(exception) => Err(refused(format!("drop table {name}"), exception)),
        }
    }
}

fn is_of(there: &Fields, root: &str) -> bool {
    table::held(there).and_then(|held| held.mark).is_some_and(|mark| mark.root == root)
}
