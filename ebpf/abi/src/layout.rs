//! Structures that both languages know: from one text, the Rust type and what the C header needs of it.

/// A field, as the C header needs it.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    pub name: &'static str,
    pub doc: &'static str,
    /// `__u32` and the like.
    pub c_type: &'static str,
    /// Of an array, how many; 0 for what is none.
    pub count: usize,
    pub offset: usize,
}

/// A structure, as the C header needs it.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    pub name: &'static str,
    pub doc: &'static str,
    pub size: usize,
    pub fields: &'static [Field],
}

/// What a type is called in C.
pub trait InC {
    const NAME: &'static str;
    const COUNT: usize = 0;
}

macro_rules! in_c {
    ($($rust:ty = $c:literal),*) => { $(impl InC for $rust { const NAME: &'static str = $c; })* };
}
in_c!(u8 = "__u8", u16 = "__u16", u32 = "__u32", u64 = "__u64", i32 = "__s32");

impl<T: InC, const N: usize> InC for [T; N] {
    const NAME: &'static str = T::NAME;
    const COUNT: usize = N;
}

macro_rules! layouts {
    ($(
        #[doc = $doc:literal]
        $name:ident = $c_name:literal { $(#[doc = $field_doc:literal] $field:ident: $type:ty,)* }
    )*) => {
        $(
            #[doc = $doc]
            #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
            #[derive(FromBytes, Immutable, IntoBytes)]
            #[repr(C)]
            pub struct $name { $(#[doc = $field_doc] pub $field: $type,)* }

            impl $crate::layout::InC for $name {
                const NAME: &'static str = concat!("struct ", $c_name);
            }
        )*

        /// All structures, in the order in which the header has them.
        pub const LAYOUTS: &[$crate::layout::Layout] = &[$($crate::layout::Layout {
            name: $c_name,
            doc: $doc,
            size: size_of::<$name>(),
            fields: &[$($crate::layout::Field {
                name: stringify!($field),
                doc: $field_doc,
                c_type: <$type as $crate::layout::InC>::NAME,
                count: <$type as $crate::layout::InC>::COUNT,
                offset: core::mem::offset_of!($name, $field),
            },)*],
        },)*];
    };
}
pub(crate) use layouts;
