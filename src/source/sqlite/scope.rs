//! The scope of a failure. A view or a generated column may be unable to read a value: that is a fault of the job whose row has
//! it. All else that can go wrong with a statement concerns every job.

use super::Sqlite;
use super::error::SqliteError;
use super::ids::Id;
use super::position::Of;
use super::tables::Tables;
use crate::event::JobId;
use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteConnection;

/// Gives an error that rows have caused the scope of `job`, where `result` is that of a statement about this job alone.
pub async fn narrow<T>(
    connection: &mut SqliteConnection,
    tables: &Tables,
    job: &JobId,
    result: Result<T, SqliteError>,
) -> Result<T, SqliteError> {
    match result {
        Err(error) if is_of_rows(connection, tables, &error).await => match error {
            SqliteError::Sqlx(error) => Err(SqliteError::OfJob { job: job.clone(), error }),
            other => Err(other),
        },
        result => result,
    }
}

/// Tells whether rows have caused an error. Where the tables are not what they were, a statement that names all columns cannot
/// be explained either, which reads no row.
pub async fn is_of_rows(connection: &mut SqliteConnection, tables: &Tables, error: &SqliteError) -> bool {
    if !error.may_be_of_rows() {
        return false;
    }
    let statement = format!("EXPLAIN {}", tables.page(&Id::new(""), Of::Job));
    sqlx::query(AssertSqlSafe(statement)).execute(connection).await.is_ok()
}

impl Sqlite {
    /// Makes a read about one job, and gives an error that its rows have caused the scope of the job.
    pub(super) async fn narrowed<T>(
        &self,
        job: &JobId,
        read: impl Future<Output = Result<T, SqliteError>>,
    ) -> Result<T, SqliteError> {
        match read.await {
            Err(error) if error.may_be_of_rows() => {
                let (mut reader, tables) = self.database.reader().await?;
                narrow(&mut reader, &tables, job, Err(error)).await
            }
            result => result,
        }
    }
}
