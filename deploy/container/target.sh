#!/bin/sh
# Steps of the Dockerfile that differ by architecture.
#
#   target.sh install ARCH        the compiler's parts for ARCH (amd64 or arm64, as Docker names them; "" for this machine's)
#   target.sh build ARCH          the binary, with the profile for packages
#   target.sh root ARCH FOLDER    the files of the image
set -eu
step=$1 arch=$2

case $arch in
    amd64) cpu=x86_64 ;;
    arm64) cpu=aarch64 ;;
    "") cpu=$(uname -m) ;;
    *) echo "There is no recipe for $arch: only for amd64 and arm64." >&2; exit 1 ;;
esac
target=$cpu-unknown-linux-gnu
is_foreign=$([ "$(uname -m)" = "$cpu" ] || echo yes)

case $step in
    install)
        # The image has the compiler's own architecture.
        [ -z "$is_foreign" ] && exit
        rustup target add "$target"
        apt-get update -q
        apt-get install -qy --no-install-recommends "gcc-$(echo $cpu | tr _ -)-linux-gnu" "libc6-dev-$arch-cross"
        ;;
    build)
        # Static: glibc 2.34 and newer look names up in files and in the DNS without libraries beside them.
        export RUSTFLAGS="-C target-feature=+crt-static"
        if [ -n "$is_foreign" ]; then
            name=$(echo $cpu-unknown-linux-gnu | tr - _)
            export "CC_$name=$cpu-linux-gnu-gcc"
            export "CARGO_TARGET_$(echo "$name" | tr a-z A-Z)_LINKER=$cpu-linux-gnu-gcc"
        fi
        cargo build --locked --profile dist --bin jobcast --target "$target"
        ;;
    root)
        root=$3
        mkdir -p "$root/etc" "$root/tmp" "$root/data"
        cp "target/$target/dist/jobcast" "$root/jobcast"
        echo 'jobcast:x:65532:65532:Jobcast:/data:/sbin/nologin' > "$root/etc/passwd"
        echo 'jobcast:x:65532:' > "$root/etc/group"
        chmod 1777 "$root/tmp"
        chown 65532:65532 "$root/data"
        ;;
    *) echo "target.sh install|build|root ARCH" >&2; exit 1 ;;
esac
