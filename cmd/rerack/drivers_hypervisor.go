package main

import (
	"cmp"
	"crypto/tls"
	"log/slog"
	"strings"

	hypervisordriver "rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/hypervisor/libvirt"
	"rerack.dev/rerack/hypervisor/vsphere"
	"rerack.dev/rerack/internal/pki"
	"rerack.dev/rerack/orchestrator/secrets"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/workflows/gateway"
)

func openLibvirt(deviceCA string, log *slog.Logger) gateway.OpenHypervisor {
	return func(machine string, h topology.Hypervisor, cert tls.Certificate) (hypervisordriver.Host, error) {
		c := libvirt.Config{Machine: machine, Address: h.Address, Bridge: h.Bridge, OVS: h.OVS, FCDevice: h.FCDevice,
			CPUShare: cmp.Or(h.CPUShare, 1), ReserveMiB: h.ReserveMiB, Logger: log}
		if strings.HasPrefix(h.Address, "tls://") {
			trust, err := pki.Trust(deviceCA, h.Fingerprint)
			if err != nil {
				return nil, err
			}
			trust.Certificates = []tls.Certificate{cert}
			c.TLS = trust
		}
		return libvirt.New(c)
	}
}

func openVSphere(creds *secrets.File, deviceCA string, log *slog.Logger) gateway.OpenHypervisor {
	return func(machine string, h topology.Hypervisor, _ tls.Certificate) (hypervisordriver.Host, error) {
		trust, err := pki.Trust(deviceCA, h.Fingerprint)
		if err != nil {
			return nil, err
		}
		return vsphere.New(vsphere.Config{Machine: machine, URL: h.Address, TLS: trust, Login: login(creds, h.Credentials), Host: h.Host,
			Datastore: h.Datastore, CPUShare: cmp.Or(h.CPUShare, 1), ReserveMiB: h.ReserveMiB, Logger: log})
	}
}
