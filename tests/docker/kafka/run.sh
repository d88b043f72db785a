#!/usr/bin/env bash
# Write the settings from the environment, prepare an empty folder, and start.
set -euo pipefail
java=(/opt/java/bin/java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp "/opt/kafka/libs/*")
setup=(kafka.docker.KafkaDockerWrapper setup --default-configs-dir /etc/kafka/docker
       --mounted-configs-dir /mnt/shared/config --final-configs-dir /opt/kafka/config)
if ! said=$("${java[@]}" "${setup[@]}" 2>&1); then
  case $said in
    *"already formatted"*) ;; # it has run before
    *) echo "$said"; exit 1 ;;
  esac
fi
# shellcheck disable=SC2086 # several options in one variable
exec "${java[@]}" ${KAFKA_HEAP_OPTS:-} -Dlog4j2.configurationFile=/opt/kafka/config/log4j2.yaml \
  kafka.Kafka /opt/kafka/config/server.properties
