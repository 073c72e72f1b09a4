//! Programs of a node before us, which run on until nobody is watched; then ours are put in their place, on the same maps. Not
//! earlier: while both are attached a deed is counted and told twice, and while neither is, it is not told at all, nor does who
//! is made then inherit the mark. The kernel replaces no program of ours in one step (`BPF_LINK_UPDATE` is not for tracing and LSM).

use std::collections::BTreeMap;

use aya::{Btf, EbpfLoader};
use ebpf_abi::VERSION;
use sha2::{Digest as _, Sha256};

use super::{
    LoadError, Maps, Object, Place, SEED, attach_all, has_essential, name_ours, remember, seed,
};
use crate::object::may_be_passed_over;
use crate::pins::{LINK, Manifest, NEXT, Pins};

/// What programs and their node have to agree on: the records, and every map that is shared. The object's own variables are not.
pub(super) fn layout(programs: &[u8]) -> Result<String, LoadError> {
    let object = aya_obj::Object::parse(programs).map_err(aya::EbpfError::from)?;
    let shared = object.maps.iter().filter(|(name, _)| !name.starts_with('.'));
    let maps: BTreeMap<&String, [u32; 5]> = shared
        .map(|(name, map)| {
            let sizes = [map.key_size(), map.value_size(), map.max_entries()];
            let [key, value, entries] = sizes;
            (name, [map.map_type(), map.map_flags(), key, value, entries])
        })
        .collect();
    Ok(hex::encode(Sha256::digest(format!("{VERSION} {maps:?}"))))
}

/// Whether ours can take over what is there.
pub(super) fn is_possible(programs: &[u8], manifest: &Manifest) -> bool {
    let is_same = layout(programs).is_ok_and(|layout| layout == manifest.layout);
    if is_same {
        tracing::info!("programs of a node before this one stay until no session runs");
    } else {
        tracing::warn!(
            "programs of a node before this one have other records or maps: ours begin anew"
        );
    }
    is_same
}

impl Object {
    /// Puts ours in the place of those of a node before us. Only while no task is marked.
    ///
    /// # Errors
    /// The kernel does not take what is essential, or nothing can be kept: those before us stay.
    pub(crate) fn replace(
        &mut self,
        programs: &[u8],
        pins: &Pins,
        maps: &Maps,
    ) -> Result<(), LoadError> {
        let btf = Btf::from_sys_fs().map_err(LoadError::Btf)?;
        let shared = pins.maps().map_err(LoadError::Pins)?;
        let mut loader = EbpfLoader::new();
        let seed = seed()?;
        loader.btf(Some(&btf)).allow_unsupported_maps().override_global(SEED, &seed, true);
        for (name, path) in &shared {
            loader.map_pin_path(name, path);
        }
        let mut ebpf = loader.load(programs)?;
        let mut links = Vec::new();
        let place = Place { pins, prefix: NEXT };
        let coverage = attach_all(&mut ebpf, &btf, Some(place), &mut links);
        if let Err(error) = has_essential(&coverage) {
            pins.remove_links(NEXT).map_err(LoadError::Pins)?;
            return Err(error);
        }
        pins.remove_links(LINK).map_err(LoadError::Pins)?;
        self._links = links;
        pins.rename_links(NEXT, LINK).map_err(LoadError::Pins)?;
        name_ours(&mut ebpf)?;
        remember(pins, programs, &coverage)?;
        self.passed_over = may_be_passed_over(maps)?;
        self.coverage = coverage;
        self.is_behind = false;
        self._ebpf = Some(ebpf);
        Ok(())
    }
}
