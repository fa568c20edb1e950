package lab

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"

	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/images"
)

// What a simulated initial RAM disk makes of the machine, written in its first line.
const (
	initrdMagic = "RERACK LAB INITRD "
	kernelMagic = "RERACK LAB KERNEL "
	imageMagic  = "RERACK LAB IMAGE"
	systemLinux = "linux"
	systemHyper = "hypervisor"
	systemCopy  = "capture"
	imagesDir   = "images"
)

// makeImages fills the image store with made-up boot files and puts their digests into the topology.
// Files that shared a digest share one afterwards.
func (l *Lab) makeImages(ctx context.Context) error {
	store, err := images.Open(filepath.Join(l.cfg.Dir, imagesDir), images.Options{})
	if err != nil {
		return err
	}
	defer store.Close()
	l.catalog = map[pxe.Digest]string{}
	made := map[string]topology.Digest{}
	blob := func(img topology.Image, name string, was topology.Digest, head string) (topology.Digest, error) {
		key := string(was) + head
		if d, ok := made[key]; was != "" && ok {
			return d, nil
		}
		d, err := store.Import(ctx, name, bytes.NewReader(l.contentOf(img, name, head)), "")
		made[key], l.catalog[d] = topology.Digest(d), head
		return topology.Digest(d), err
	}
	for _, name := range l.topo.Names(topology.KindImage) {
		img := l.topo.Images[name]
		system := systemLinux
		switch img.Spec.Type {
		case topology.ImageSAN:
			continue // boots what is on its volume
		case topology.ImageHypervisor:
			system = systemHyper
		case topology.ImageCapture:
			system = systemCopy
		case topology.ImageDisk, topology.ImageISO, topology.ImageEFI:
			if img.Spec.File, err = blob(img, name+".image", img.Spec.File, imageMagic); err != nil {
				return err
			}
			l.topo.Images[name] = img
			continue
		case topology.ImageKernel:
		}
		if img.Spec.Kernel, err = blob(img, name+".kernel", img.Spec.Kernel, kernelMagic+string(img.Spec.Arch)); err != nil {
			return err
		}
		if len(img.Spec.Initrds) == 0 {
			img.Spec.Initrds = []topology.Digest{""}
		}
		for i, was := range img.Spec.Initrds {
			if img.Spec.Initrds[i], err = blob(img, fmt.Sprintf("%s.initrd%d", name, i), was, initrdMagic+system); err != nil {
				return err
			}
		}
		l.topo.Images[name] = img
	}
	return nil
}

// contentOf is a boot file: of the real test system, or made up.
func (l *Lab) contentOf(img topology.Image, name, head string) []byte {
	switch {
	case !l.isRealImage(img):
		return l.blob(name, head)
	case strings.HasPrefix(head, kernelMagic):
		return l.real.kernel
	case img.Spec.Type == topology.ImageHypervisor:
		return l.real.hypervisor
	}
	return l.real.initrd
}

// blob is a file that starts with its head and goes on with noise drawn from the lab's seed.
func (l *Lab) blob(name, head string) []byte {
	b := make([]byte, l.cfg.ImageBytes)
	var seed [32]byte
	copy(seed[8:], name)
	for i := range 8 {
		seed[i] = byte(l.cfg.Seed >> (8 * i))
	}
	_, _ = rand.NewChaCha8(seed).Read(b) // never fails
	copy(b, head+"\n")
	return b
}
