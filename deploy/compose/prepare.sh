#!/bin/sh
# Makes what the compose files need and no repository may hold: certificates, passwords, the users of
# Redis, and the clip that the test camera plays. All of it goes into private/, which only you can
# read; what is there already stays.
#   deploy/compose/prepare.sh CLIP        CLIP: H.264 in .mp4, such as demo/out/clip.mp4 of `make demo`
# PRIVATE names another folder.
set -eu
clip=${1:?expected the clip that the test camera is to play, such as demo/out/clip.mp4}
here=$(cd "$(dirname "$0")" && pwd)
private=${PRIVATE:-$here/private}
rules=$here/../../docs/messages.md # the one home of what a producer and a consumer may do

umask 022 # containers run as users of their own: the files are theirs to read, the folder is not
mkdir -p "$private"
chmod 0700 "$private"
cp "$clip" "$private/clip.mp4"
cd "$private"

if [ ! -e ca.pem ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 \
        -subj "/CN=facewarden compose" -addext keyUsage=critical,keyCertSign \
        -keyout ca.key -out ca.pem 2> /dev/null
    chmod 0600 ca.key
fi
if [ ! -e server.pem ]; then
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=valkey" \
        -keyout server.key -out server.csr 2> /dev/null
    printf 'subjectAltName=DNS:valkey,DNS:localhost\n' > names
    openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 825 \
        -extfile names -out server.pem 2> /dev/null
    chmod 0644 server.key
    rm server.csr names
fi
if [ ! -e users.acl ]; then
    echo "user default off" > users.partial
    for user in facewarden siem; do
        password=$(openssl rand -hex 24)
        digest=$(printf %s "$password" | openssl dgst -sha256 -r | cut -d ' ' -f 1)
        more=
        if [ $user = facewarden ]; then more=' +xinfo|groups'; fi # the lag of consumers, for --metrics
        sed -n "s/^ACL SETUSER $user on >PASSWORD/user $user on #$digest/p" "$rules" \
            | sed "s/\$/$more/" >> users.partial
        echo "REDIS_URL=rediss://$user:$password@valkey:6379/0" > "$user.env"
        chmod 0600 "$user.env"
    done
    mv users.partial users.acl
fi
if [ ! -e grafana-password ]; then
    openssl rand -hex 12 > grafana-password
fi
echo "$private: ready. Grafana's user is admin, its password in grafana-password."
