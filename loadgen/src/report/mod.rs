//! Results for people and programs.

pub mod chart;
pub mod hgrm;
pub mod html;
pub mod live;
pub mod markdown;
pub mod text;

use std::path::{Path, PathBuf};

use crate::args::{self, OutputArgs};
use crate::error::Error;
use crate::results::document::{Document, SCHEMA_VERSION};

/// Finds files that could not be written before any load, rather than when its results are there.
pub fn check<'p>(paths: impl IntoIterator<Item = &'p PathBuf>) -> Result<(), Error> {
    for path in paths {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let words = match directory.unwrap_or(Path::new(".")) {
            directory if !directory.is_dir() => "there is no such directory",
            _ if path.is_dir() => "it is a directory",
            _ => continue,
        };
        return Err(Error::Setup(format!("cannot write {}: {words}", path.display())));
    }
    Ok(())
}

/// Writes the files that were asked for.
pub fn write(output: &OutputArgs, document: &Document) -> Result<(), Error> {
    if let Some(path) = &output.json {
        let json = serde_json::to_string_pretty(document).expect("plain data becomes JSON");
        file(path, &(json + "\n"))?;
    }
    if let Some(path) = &output.html {
        file(path, &html::page(std::slice::from_ref(document)))?;
    }
    if let Some(path) = &output.hgrm {
        // A sweep is written after each of its runs, so that the first must have a number too.
        let many = document.runs.len() > 1
            || ["sweep", "saturate", "compare"].contains(&document.kind.as_str());
        for (number, run) in document.runs.iter().enumerate() {
            let path = if many { numbered(path, number + 1) } else { path.clone() };
            if let Some(histogram) = &run.histogram {
                let host = document.host.sentence();
                let notes = [&run.label(), &document.command, &document.date, &host];
                file(&path, &hgrm::text(histogram, &notes.map(String::as_str)))?;
            }
        }
    }
    Ok(())
}

/// `dir/name.hgrm` becomes `dir/name-3.hgrm`.
fn numbered(path: &Path, number: usize) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name = match path.extension() {
        Some(extension) => format!("{stem}-{number}.{}", extension.to_string_lossy()),
        None => format!("{stem}-{number}"),
    };
    path.with_file_name(name)
}

/// Writes a file, or says which one could not be written.
pub fn file(path: &Path, text: &str) -> Result<(), Error> {
    std::fs::write(path, text)
        .map_err(|error| Error::Setup(format!("cannot write {}: {error}", path.display())))
}

/// The command `report`: text, and a page if asked for, of results kept as JSON.
pub fn run(report: &args::ReportArgs) -> Result<(), Error> {
    let mut documents = Vec::new();
    for path in &report.files {
        let failed =
            |words: String| Error::Setup(format!("cannot read {}: {words}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        let version =
            serde_json::from_str::<serde_json::Value>(&text).map_err(|error| {
                failed(format!("it is not JSON written by --json: {error}"))
            })?["schema_version"]
                .as_u64();
        if version != Some(u64::from(SCHEMA_VERSION)) {
            let has = version.map_or("no schema version".into(), |v| format!("schema version {v}"));
            return Err(failed(format!("it has {has}, but this tool reads {SCHEMA_VERSION}")));
        }
        let document: Document =
            serde_json::from_str(&text).map_err(|error| failed(error.to_string()))?;
        documents.push(document);
    }
    for (number, document) in documents.iter().enumerate() {
        let gap = if number > 0 { "\n" } else { "" };
        let host = document.host.sentence();
        println!("{gap}{} ({})\n{host}\n", document.command, document.date);
        match &document.comparison {
            Some(comparison) => {
                for row in &comparison.rows {
                    print!("{}", markdown::row_as_text(row));
                }
            }
            None if ["sweep", "saturate"].contains(&document.kind.as_str()) => {
                println!("{}", text::sweep_header());
                document.runs.iter().for_each(|run| println!("{}", text::sweep_line(run)));
            }
            None => document.runs.iter().for_each(|run| print!("{}", text::summary(run))),
        }
        document.verdict.iter().for_each(|sentence| println!("{sentence}"));
    }
    if let Some(path) = &report.html {
        file(path, &html::page(&documents))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_cannot_be_written_are_found_at_once() {
        let found = |path: &str| check([&PathBuf::from(path)]).map_err(|error| error.to_string());
        assert!(found("/nonexistent/a.json").unwrap_err().contains("no such directory"));
        assert!(found("/tmp").unwrap_err().contains("it is a directory"));
        assert!(found("/tmp/a.json").is_ok() && found("a.json").is_ok());
    }

    #[test]
    fn files_of_several_runs_are_numbered() {
        assert_eq!(numbered(Path::new("a/b.hgrm"), 2), Path::new("a/b-2.hgrm"));
        assert_eq!(numbered(Path::new("b"), 1), Path::new("b-1"));
    }
}
