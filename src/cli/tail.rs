#[derive(clap::Args)]
pub struct Args {}
pub async fn run(_: Args) -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
