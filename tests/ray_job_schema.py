"""A strict JSON schema of KubeRay's RayJob, ray.io/v1, after its Go types. Pods are checked elsewhere."""

from __future__ import annotations

from typing import Any

TEXT, FLAG, COUNT, NUMBER = (
    {"type": "string"},
    {"type": "boolean"},
    {"type": "integer"},
    {"type": "number"},
)
ANYTHING: dict[str, Any] = {"type": "object"}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def closed(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    """An object that has these keys and no others."""
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": properties,
    }


POD_TEMPLATE = closed(("spec",), metadata=ANYTHING, spec=ANYTHING)
HEAD = closed(
    ("rayStartParams", "template"),
    serviceType=TEXT,
    headService=ANYTHING,
    enableIngress=FLAG,
    rayStartParams=TEXTS,
    template=POD_TEMPLATE,
)
WORKERS = closed(
    ("groupName", "rayStartParams", "template"),
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts=COUNT,
    rayStartParams=TEXTS,
    template=POD_TEMPLATE,
    scaleStrategy=closed((), workersToDelete={"type": "array", "items": TEXT}),
)
CLUSTER = closed(
    ("headGroupSpec",),
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": WORKERS},
    rayVersion=TEXT,
    authOptions=closed(("mode",), mode={"enum": ["disabled", "token"]}, secretName=TEXT),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=ANYTHING,
    headServiceAnnotations=TEXTS,
    suspend=FLAG,
)
SPEC = closed(
    (),
    activeDeadlineSeconds=COUNT,
    preRunningDeadlineSeconds=COUNT,
    backoffLimit=COUNT,
    rayClusterSpec=CLUSTER,
    submitterPodTemplate=POD_TEMPLATE,
    metadata=TEXTS,
    clusterSelector=TEXTS,
    submitterConfig=closed((), backoffLimit=COUNT),
    managedBy=TEXT,
    deletionStrategy=ANYTHING,
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    jobId=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    entrypointResources=TEXT,
    entrypointNumCpus=NUMBER,
    entrypointNumGpus=NUMBER,
    ttlSecondsAfterFinished=COUNT,
    shutdownAfterJobFinishes=FLAG,
    suspend=FLAG,
    schedule=TEXT,
)
RAY_JOB = closed(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=ANYTHING,
    spec=SPEC,
)
