//! `jobcast completions` and `jobcast man`: files for packages, made from the command line itself.

use super::{Cli, failed};
use clap::{Command, CommandFactory};
use clap_complete::Shell;
use std::io::{self, Write};
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    /// The shell that completes
    shell: Shell,
}

pub fn completions(args: Args) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "jobcast", &mut script);
    write(&script)
}

/// Prints one page for the program and, after it, for each of its commands.
pub fn man() -> ExitCode {
    let mut program = Cli::command();
    program.build();
    let mut page = Vec::new();
    let commands = program.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help");
    match render(&program, commands, &mut page) {
        Ok(()) => write(&page),
        Err(error) => failed(format_args!("cannot make the page: {error}")),
    }
}

fn render<'a>(program: &Command, commands: impl Iterator<Item = &'a Command>, page: &mut Vec<u8>) -> io::Result<()> {
    clap_mangen::Man::new(program.clone()).render(page)?;
    for command in commands {
        writeln!(page, ".SH \"{}\"", command.get_display_name().unwrap_or_default().replace('-', " ").to_uppercase())?;
        let man = clap_mangen::Man::new(command.clone());
        man.render_description_section(page)?;
        man.render_options_section(page)?;
        man.render_extra_section(page)?;
    }
    Ok(())
}

fn write(bytes: &[u8]) -> ExitCode {
    match io::stdout().write_all(bytes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => failed(format_args!("cannot print: {error}")),
    }
}
