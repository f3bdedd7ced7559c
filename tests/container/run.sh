#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Build the container image and try it as clusters run it: `make container-test`, or `run.sh STEP ...`.
#
#   base       Debian 12 by debootstrap, under the name that the Dockerfile says in FROM: no registry is needed
#   image      the Dockerfile, by buildah
#   run        the image as a foreign user without a home, with a read-only root and no network, where nothing but
#              /out can be written to (bubblewrap): version, simulated data, a reconstruction, and the rest
#   apptainer  Apptainer, from Debian sid, in a folder of its own
#   sif        a SIF of the image
#   sif-run    the SIF, unprivileged: apptainer run --containall --cleanenv
#   gpu        the packages of the GPU variant, found and fitted together but not downloaded (needs the command uv)
#   clean      remove all of it
#
# Needs root, and from Debian: buildah debootstrap bubblewrap. All is written below GSBIDS_CONTAINER_DIR.
# TORCH_INDEX is passed to the Dockerfile; settings of pip (PIP_CERT, PIP_FIND_LINKS, PIP_INDEX_URL) are used in the build.

set -euo pipefail

checkout=$(cd "$(dirname "$0")/../.." && pwd)
top=${GSBIDS_CONTAINER_DIR:-/var/tmp/gsbids-container}
base=docker.io/library/debian:bookworm-slim
image=localhost/gsbids:test
dependencies=localhost/gsbids-dependencies:test
archive=$top/gsbids.oci.tar
uid=12345
export CONTAINERS_STORAGE_CONF=$top/storage.conf BUILDAH_ISOLATION=chroot

say() { printf '== %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }
timed() { local begin=$SECONDS; "$@"; say "that took $((SECONDS - begin)) s"; }

need() {
    [ "$(id -u)" = 0 ] || fail "root is needed to build images and to become another user"
    for command in buildah debootstrap bwrap setpriv unshare; do
        command -v "$command" >/dev/null || fail "$command is missing; apt-get install buildah debootstrap bubblewrap"
    done
    mkdir -p "$top"
    printf '[storage]\ndriver = "vfs"\ngraphroot = "%s"\nrunroot = "%s"\n' "$top/storage" "$top/run" > "$top/storage.conf"
}

step_base() {
    buildah inspect --type image "$base" >/dev/null 2>&1 && return
    local root=$top/bookworm suite
    rm -rf "$root"
    debootstrap --variant=minbase bookworm "$root" http://deb.debian.org/debian > "$top/debootstrap.log"
    for suite in "debian bookworm" "debian bookworm-updates" "debian-security bookworm-security"; do
        echo "deb http://deb.debian.org/$suite main"
    done > "$root/etc/apt/sources.list"
    # As the slim images of Debian.
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale,info}/*
    mkdir -p "$top/base"
    tar -C "$root" -cf "$top/base/base.tar" .
    printf 'FROM scratch\nADD base.tar /\nCMD ["/bin/bash"]\n' > "$top/base/Dockerfile"
    buildah bud --quiet --squash -t "$base" "$top/base"
    rm -rf "$root" "$top/base"
}

step_image() {
    local options=() version
    version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$checkout/gsbids/__init__.py")
    { echo '[global]'
      if [ -n "${PIP_CERT:-}" ]; then
          cp "$PIP_CERT" "$top/pip-ca.crt"; options+=(-v "$top/pip-ca.crt:/etc/pip-ca.crt:ro"); echo 'cert = /etc/pip-ca.crt'
      fi
      if [ -n "${PIP_INDEX_URL:-}" ]; then echo "index-url = $PIP_INDEX_URL"; fi
      if [ -d "${PIP_FIND_LINKS:-}" ]; then
          options+=(-v "$PIP_FIND_LINKS:/pip-links:ro"); echo 'find-links = /pip-links'
          TORCH_INDEX=${TORCH_INDEX-}
      fi
    } > "$top/pip.conf"
    if [ -n "${TORCH_INDEX+set}" ]; then options+=(--build-arg "TORCH_INDEX=$TORCH_INDEX"); fi
    options+=(-v "$top/pip.conf:/etc/pip.conf:ro")
    # The large stage is kept for the next time; the others would be copied whole for each of their lines.
    buildah bud --layers "${options[@]}" --target dependencies -t "$dependencies" "$checkout"
    buildah bud "${options[@]}" --build-context "dependencies=container-image://$dependencies" \
        --build-arg "VERSION=$version" --build-arg "VCS_REF=$(git -C "$checkout" rev-parse HEAD)" \
        --build-arg "BUILD_DATE=$(date -u +%Y-%m-%dT%H:%M:%SZ)" -t "$image" "$checkout"
}

# The image's own settings: Docker would apply them.
setting() { buildah inspect --type image --format "{{$1}}" "$image"; }

environment() { buildah inspect --type image --format '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' "$image" | grep .; }

mount_image() {
    container=$(buildah from --pull-never "$image")
    mkdir -p "$top/rootfs"
    mount --bind "$(buildah mount "$container")" "$top/rootfs"
    mkdir -p "$top/rootfs/data" "$top/rootfs/out"  # Docker makes them itself
    trap 'umount "$top/rootfs"; buildah rm "$container" >/dev/null' EXIT
}

# contained OUT PROGRAM ARGUMENT ...: as a foreign user; OUT is all that can be written to.
contained() {
    local out=$1 variables; shift
    mapfile -t variables < <(environment | grep -v '^HOME=')
    env -i "${variables[@]}" setpriv --reuid "$uid" --regid "$uid" --clear-groups --no-new-privs \
        bwrap --unshare-user --unshare-net --unshare-pid --unshare-ipc --die-with-parent \
        --ro-bind "$top/rootfs" / --proc /proc --dev /dev --ro-bind "$top/bids" /data --bind "$out" /out \
        ${more[@]+"${more[@]}"} --chdir / -- "$@"
}

fresh() { rm -rf "$1"; install -d -o "$uid" -g "$uid" "$1"; }
hashes() { (cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum); }

volume=sub-01/anat/sub-01_rec-gsvr_res-0p8_desc-preproc_T2w.nii.gz
reconstruct=(/data /out participant -d masks=/data/derivatives/masks -w /out/work --nprocs 1)

step_run() {
    mount_image
    local gsbids=/opt/gsbids/bin/gsbids python=/opt/gsbids/bin/python out=$top/out more=() status
    [ "$(setting .OCIv1.Config.Entrypoint)" = "[$gsbids]" ] || fail "the entry point is not $gsbids"
    setting .OCIv1.Config.Labels | grep -q org.opencontainers.image.version || fail "the image has no labels"
    fresh "$top/bids"; fresh "$out"
    say "the sandbox is one"
    contained "$out" "$python" - < "$checkout/tests/container/sandbox.py"
    timed contained "$out" "$gsbids" --version
    say "simulated data"
    contained "$top/bids" "$python" -m gsbids.simulate /out --brain-ml 20 --stacks axial coronal sagittal --seed 1
    hashes "$top/bids" > "$top/bids.sha256"
    say "reconstruction"
    timed contained "$out" "$gsbids" "${reconstruct[@]}"
    more=(--tmpfs /tmp)  # the simulator is no part of the command line, and wants one
    contained "$out" "$python" -m gsbids.simulate /data --score "/out/$volume"
    more=()
    [ -s "$out/sub-01.html" ] || fail "there is no report"
    hashes "$top/bids" | cmp - "$top/bids.sha256" || fail "the input has changed"
    say "image of $(du -sm --one-file-system "$top/rootfs" | cut -f1) MiB"
    kernels "$top/rootfs/opt/gsbids/cache/numba" "$out/work/.cache/numba"
    grep -q '"Tag": "gsbids:' "$out/dataset_description.json" || fail "dataset_description.json does not name the image"
    say "the other commands"
    contained "$out" "$gsbids" /data /out group
    contained "$out" "$gsbids" sample "/out/${volume/res-0p8_desc-preproc_T2w.nii.gz/desc-gaussians_model.npz}" \
        /out/sample.nii.gz --spacing 2
    contained "$out" "$gsbids" super-resolve /out/sample.nii.gz /out/fine.nii.gz --factor 2 --sr-quality fast
    status=0; contained "$out" "$gsbids" /data /data/below participant || status=$?
    [ "$status" = 2 ] || fail "an output folder that cannot be made ends with $status, not 2"
    say "with a /tmp, a home that cannot be written to, and two processes"
    more=(--tmpfs /tmp --setenv HOME /nonexistent)
    fresh "$top/out-tmp"
    timed contained "$top/out-tmp" "$gsbids" "${reconstruct[@]}" --nprocs 2 --omp-nthreads 1 --sloppy
    [ -s "$top/out-tmp/$volume" ] || fail "there is no volume"
    kernels "$top/rootfs/opt/gsbids/cache/numba" "$top/out-tmp/work/.cache/numba"
}

# kernels GIVEN FOUND: every kernel that a run has used came with the image; its cache is in the work folder.
kernels() {
    local made
    [ -d "$2" ] || fail "the work folder holds no kernels"
    made=$(comm -13 <(hashes "$1" | sort) <(hashes "$2" | sort))  # by content: numba gives a new one an old name
    [ -z "$made" ] || fail "compiled at run time: $made"
    say "no kernel was compiled"
}

step_apptainer() {
    [ -x "$top/sid/usr/bin/apptainer" ] && return
    rm -rf "$top/sid"
    debootstrap --variant=minbase --include=apptainer,ca-certificates,squashfs-tools sid "$top/sid" \
        http://deb.debian.org/debian > "$top/sid.log"
}

# in_sid COMMAND: in the folder with Apptainer, without a network; $top/share is /share there.
in_sid() {
    mkdir -p "$top/share" "$top/sid/share" "$top/sid/oldroot"
    install -d -m 1777 "$top/apptainer-tmp"
    cp /etc/hosts /etc/resolv.conf "$top/sid/etc/"
    # Apptainer wants its user to have a name where it runs, as on a cluster.
    grep -q '^someone:' "$top/sid/etc/passwd" || {
        echo "someone:x:$uid:$uid::/tmp:/bin/sh" >> "$top/sid/etc/passwd"
        echo "someone:x:$uid:" >> "$top/sid/etc/group"
    }
    unshare --mount --net --fork bash -euc '
        mount --make-rprivate /
        mount --bind "$1/sid" "$1/sid"
        mount -t proc proc "$1/sid/proc"
        mount --rbind /dev "$1/sid/dev"
        mount --rbind /sys "$1/sid/sys"
        mount --bind "$1/apptainer-tmp" "$1/sid/tmp"
        mount --rbind "$1/share" "$1/sid/share"
        cd "$1/sid"
        pivot_root . oldroot
        umount -l /oldroot
        cd /
        exec sh -euc "$2"' in_sid "$top" "$1"
}

step_sif() {
    mkdir -p "$top/share"
    rm -f "$archive" "$top/share/gsbids.sif"
    buildah push --quiet "$image" "oci-archive:$archive"
    mv "$archive" "$top/share/gsbids.oci.tar"
    in_sid 'apptainer --version; apptainer build /share/gsbids.sif oci-archive:/share/gsbids.oci.tar'
    say "SIF of $(du -m "$top/share/gsbids.sif" | cut -f1) MiB, archive of $(du -m "$top/share/gsbids.oci.tar" | cut -f1) MiB"
    rm -f "$top/share/gsbids.oci.tar"
}

# The script of docs/clusters.md for sbatch, as Slurm would run it for the first subject, with the folders of this test.
step_sif-run() {
    local share=$top/share user
    user="setpriv --reuid=$uid --regid=$uid --clear-groups --no-new-privs env -i PATH=$PATH HOME=/tmp USER=someone"
    fresh "$share/out"; fresh "$share/scratch"
    rm -rf "$share/bids"; cp -a "$top/bids" "$share/bids"
    sed -n '/^```bash/,/^```$/{/^```/d;p}' "$checkout/docs/clusters.md" | sed -e 's|^study=.*|study=/share/bids|' \
        -e 's|^out=.*|out=/share/out|' -e 's|^work=.*|work=/share/scratch|' -e 's|^image=.*|image=/share/gsbids.sif|' \
        > "$share/gsbids.sbatch"
    grep -q 'apptainer run --nv --cleanenv --containall' "$share/gsbids.sbatch" || fail "the script is not in docs/clusters.md"
    timed in_sid "$user apptainer run --cleanenv --containall /share/gsbids.sif --version"
    timed in_sid "cd /tmp; $user SLURM_ARRAY_TASK_ID=0 SLURM_CPUS_PER_TASK=1 SLURM_MEM_PER_NODE=8192 \
        PYTHONPATH=/nonsense OMP_NUM_THREADS=99 bash /share/gsbids.sbatch"
    [ -s "$share/out/sub-01.html" ] || fail "there is no report"
    hashes "$share/bids" | cmp - "$top/bids.sha256" || fail "the input has changed"
    grep -q '"Type": "apptainer"' "$share/out/dataset_description.json" ||
        fail "dataset_description.json does not say that Apptainer ran it"
    cmp "$top/out/$volume" "$share/out/$volume" || fail "the volume is not that of the image"
    say "the same volume as before, to the bit"
    kernels "$top/out/work/.cache/numba" "$share/scratch/sub-01/.cache/numba"
    in_sid "$user apptainer run --cleanenv --containall -B /share/bids:/data:ro -B /share/out:/out /share/gsbids.sif \
        /data /out group"
}

step_gpu() {
    command -v uv >/dev/null || fail "uv is missing; pip install uv"
    (cd "$checkout" && python3 container/requirements.py gpu > "$top/requirements-gpu.txt"
     uv pip compile --quiet --no-header --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
        --constraint constraints.txt "$top/requirements-gpu.txt" > "$top/gpu.txt")
    grep -E '^(torch|numba-cuda|numba|nvidia-|cuda-)' "$top/gpu.txt"
    say "$(grep -c == "$top/gpu.txt") packages"
}

step_clean() { rm -rf "$top"; }

need
steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(base image run apptainer sif sif-run)
for step in "${steps[@]}"; do
    declare -F "step_$step" >/dev/null || fail "there is no step $step"
    say "$step"
    # In a shell of its own: what a step mounts, its end unmounts.
    begin=$SECONDS
    ( "step_$step" )
    say "$step took $((SECONDS - begin)) s"
done
say "all passed: ${steps[*]}"
