# The operator's image: the program, git with what git needs for HTTPS and SSH, and nothing else.
#
# The program is built outside (`make image` does it and calls this file), so that one build serves image and tests.
# No line is special to one builder: docker, podman and buildah read it alike.
ARG BASE=docker.io/library/debian:bookworm-slim
FROM ${BASE} AS parts
RUN command -v git && command -v ssh && command -v update-ca-certificates \
    || { apt-get update && apt-get install -y --no-install-recommends git openssh-client ca-certificates; }

# Debian's git brings Perl, and with it 50 MB that this operator never runs: take git's own programs and the
# libraries that they name, and those that a Rust program names. /bin/sh is there because git starts ssh through it.
RUN set -eu; root=/rootfs; mkdir -p $root; \
    for link in bin lib lib64 sbin; do if [ -L /$link ]; then mkdir -p $root/usr/$link; ln -s usr/$link $root/$link; fi; done; \
    take() { for file in "$@"; do folder=$(readlink -f "$(dirname "$file")"); mkdir -p "$root$folder"; cp -L "$file" "$root$folder/"; done; }; \
    programs="/usr/bin/git /usr/lib/git-core/git-remote-http /usr/bin/ssh /usr/bin/ssh-keygen /bin/sh"; \
    take $programs; \
    for program in $programs; do take $(ldd "$program" | grep -o '/[^ ]*'); done; \
    take /lib/*/libgcc_s.so.1 /lib/*/libm.so.6; \
    ln -s git-remote-http $root/usr/lib/git-core/git-remote-https; \
    for name in git git-upload-pack git-receive-pack git-upload-archive; do ln -s /usr/bin/git $root/usr/lib/git-core/$name; done; \
    for name in git-upload-pack git-receive-pack git-upload-archive; do ln -s git $root/usr/bin/$name; done; \
    mkdir -p $root/usr/share/git-core/templates; \
    take /etc/ssl/certs/ca-certificates.crt; \
    mkdir -p $root/etc/ssh; \
    printf 'hosts: files dns\n' > $root/etc/nsswitch.conf; \
    printf 'root:x:0:0:root:/:/sbin/nologin\nsluice:x:65532:65532:sluice:/home/sluice:/sbin/nologin\n' > $root/etc/passwd; \
    printf 'root:x:0:\nsluice:x:65532:\n' > $root/etc/group; \
    mkdir -p -m 1777 $root/tmp; \
    mkdir -p $root/home/sluice; chown 65532:65532 $root/home/sluice

FROM scratch
COPY --from=parts /rootfs/ /
ARG BINARY=target/image/sluice
COPY ${BINARY} /usr/local/bin/sluice
ENV PATH=/usr/local/bin:/usr/bin:/bin HOME=/home/sluice SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/sluice"]
CMD ["operator"]
